"""What each operation of a compiled program does: products, bytes in memory, bytes on links."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

from flaxlm.plan.hlo import Computation, Instruction, Module

COLLECTIVES = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute',
  'ragged-all-to-all', 'collective-broadcast',
)  # fmt: skip
# Names of values, and operations that only call others: no work of their own.
_FREE = frozenset((
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'call', 'conditional',
  'after-all', 'partition-id', 'replica-id', 'opt-barrier', 'iota', 'add-dependency', 'domain',
))  # fmt: skip
_MOSAIC = 'tpu_custom_call'
# Kernels of splash attention and their products of a block: scores and values; scores, their
# gradient and that of the queries; scores, gradients of values, scores and keys.
_SPLASH = {'_mha_fwd': 2, '_mha_dq': 3, '_mha_dkv': 4}


@dataclasses.dataclass(frozen=True)
class Work:
  """One operation, and how often it is run in a step. Numbers are of one run on one chip.

  flops: of matrix products; bytes: read from and written to device memory; cycles: the compiler's
  estimate, or None; kernel: whether the compiler cannot look into it (a Pallas kernel);
  hidden: a transfer that goes on beside other operations; source: the operation of the model.
  """

  name: str
  opcode: str
  times: float
  flops: float
  bytes: float
  cycles: float | None
  kernel: bool
  hidden: bool
  source: str


@dataclasses.dataclass(frozen=True)
class Transfer:
  """A collective operation, and how often it is run in a step.

  bytes: what one chip has of its result (of its operand, for a reduce-scatter), once; wire: what
  leaves a chip in a ring; group: chips that take part; hidden: whether it runs beside others.
  """

  kind: str
  times: float
  bytes: int
  wire: float
  group: int
  hidden: bool
  source: str


def works(module: Module) -> Iterator[Work]:
  """Every operation of a step but those between chips."""
  for scope, instruction, times in module.runs():
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(('-done', '-update')) or _kind(instruction):
      continue
    cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    yield Work(
      name=instruction.name,
      opcode=opcode,
      times=times,
      flops=flops(module, scope, instruction),
      bytes=memory_bytes(module, scope, instruction),
      cycles=float(cycles.group(1)) if cycles else None,
      kernel=is_kernel(instruction),
      hidden=opcode.endswith('-start'),
      source=_source(instruction),
    )


def transfers(module: Module) -> Iterator[Transfer]:
  """Every collective operation of a step, also those inside of fusions.

  One that goes on beside other operations stands in each fusion it spans; it is one by its channel.
  """
  seen = set()
  for scope, instruction, times in module.runs():
    if _kind(instruction):
      yield _transfer(scope, instruction, times, instruction.opcode.endswith('-start'))
    for inner_scope, inner in module.inside(instruction):
      if _kind(inner):
        channel = scope.name, inner.attribute('channel_id') or inner.name
        if channel not in seen:
          seen.add(channel)
          yield _transfer(inner_scope, inner, times, True)


def _source(instruction: Instruction) -> str:
  found = re.search(r'op_name="([^"]*)"', instruction.attributes)
  return found.group(1) if found else ''


def _kind(instruction: Instruction) -> str | None:
  kind = instruction.opcode.removesuffix('-start')
  return kind if kind in COLLECTIVES else None


def _transfer(scope: Computation, instruction: Instruction, times: float, hidden: bool) -> Transfer:
  kind = _kind(instruction)
  operands = [scope.instructions[name] for name in instruction.operands]
  given = sum(operand.bytes for operand in operands)
  if kind == 'reduce-scatter':
    size = given
  elif instruction.opcode == 'all-reduce-start' or not instruction.opcode.endswith('-start'):
    size = instruction.bytes
  else:  # Its result holds the operands too, and words that the hardware counts in.
    words = sum(array.bytes for array in instruction.arrays if array.dims == ())
    size = instruction.bytes - given - words
  group = group_size(instruction)
  rounds = 2 if kind == 'all-reduce' else 1
  share = 1.0 if kind == 'collective-permute' else (group - 1) / group
  return Transfer(kind, times, size, rounds * share * size, group, hidden, _source(instruction))


def group_size(instruction: Instruction) -> int:
  """Chips that exchange with one another in a collective operation."""
  if _kind(instruction) == 'collective-permute':
    return 2
  text = instruction.attributes
  mesh = re.search(r'replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}', text)
  if mesh:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh.group(2)))
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\]', text)
  if iota:
    return int(iota.group(2))
  groups = re.search(r'replica_groups=\{\{([\d,]*)\}', text)
  return len(groups.group(1).split(',')) if groups else 1


def flops(module: Module, scope: Computation, instruction: Instruction) -> float:
  """Operations of the matrix products in an instruction, 2 for a multiply-add, exactly."""
  inner = sum(_product(where, one) for where, one in module.inside(instruction))
  return inner + _product(scope, instruction)


def _product(scope: Computation, instruction: Instruction) -> float:
  if instruction.opcode == 'dot':
    (out,) = instruction.arrays
    left = scope.instructions[instruction.operands[0]].arrays[0]
    dims = re.findall(r'\d+', instruction.attribute('lhs_contracting_dims') or '')
    return 2.0 * math.prod(out.dims) * math.prod(left.dims[int(d)] for d in dims)
  if instruction.opcode == 'convolution':
    return _convolution(scope, instruction)
  if instruction.opcode == 'custom-call' and 'gemm' in instruction.attributes:
    return _library_product(scope, instruction)
  if is_kernel(instruction):
    return _attention(scope, instruction)
  return 0.0


def is_kernel(instruction: Instruction) -> bool:
  """Whether it is a Pallas kernel, into which the compiler does not look."""
  return instruction.opcode == 'custom-call' and f'"{_MOSAIC}"' in instruction.attributes


def _attention(scope: Computation, instruction: Instruction) -> float:
  """Products of the blocks of scores that a kernel of splash attention visits; 0 of other kernels.

  Its operands are the block of keys that each step of its grid reads, [1 or H, blocks of queries,
  steps] int8, then q [..., L, K], and last the places of the queries where a mask is computed from
  them. A window shortens the grid; in one as wide as long, a computed mask is the causal one, which
  leaves the blocks on and below the diagonal.
  """
  products = next((n for part, n in _SPLASH.items() if part in instruction.name), 0)
  arrays = [scope.instructions[name].arrays[0] for name in instruction.operands]
  grids = [array for array in arrays if array.dtype == 's8' and len(array.dims) == 3]
  if not products or not grids:
    return 0.0
  rows, steps = grids[0].dims[1:]
  q = next(array for array in arrays if array.dtype in ('bf16', 'f32') and len(array.dims) > 2)
  computed = arrays[-1].dtype == 's32' and len(arrays[-1].dims) == 2
  visited = rows * (rows + 1) / 2 if computed and rows == steps else rows * steps
  block = q.dims[-2] / rows
  return products * 2.0 * math.prod(q.dims[:-2]) * q.dims[-1] * visited * block**2


def _library_product(scope: Computation, instruction: Instruction) -> float:
  """Of a matrix product that is left to a library (cuBLAS): dimensions are in its config."""
  dims = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
  left = scope.instructions[instruction.operands[0]].arrays[0]
  contracted = [left.dims[int(d)] for d in re.findall(r'\d+', dims.group(1))] if dims else []
  return 2.0 * math.prod(instruction.arrays[0].dims) * math.prod(contracted)


def _convolution(scope: Computation, instruction: Instruction) -> float:
  """TPUs run every product as a convolution, a batch dimension as one with holes in its window.

  Only places that meet an element of the input count, as in XLA's own analysis.
  """
  left, right = (scope.instructions[name].arrays[0] for name in instruction.operands[:2])
  (out, *_) = instruction.arrays
  labels = re.split(r'_|->', instruction.attribute('dim_labels'))
  place = [{label: i for i, label in enumerate(part)} for part in labels]
  spatial = sorted(label for label in place[0] if label.isdigit())
  window = _window(instruction.attribute('window') or '', len(spatial))
  met = 1
  for axis, (size, stride, low, left_holes, right_holes) in zip(spatial, window, strict=True):
    extent, places = left.dims[place[0][axis]], out.dims[place[2][axis]]
    met *= _met(extent, places, size, stride, low, left_holes, right_holes)
  batch = left.dims[place[0]['b']] // int(instruction.attribute('batch_group_count') or 1)
  return 2.0 * met * batch * right.dims[place[1]['i']] * out.dims[place[2]['f']]


def _window(text: str, dims: int) -> list[tuple[int, ...]]:
  """(size, stride, padding before, dilation of the input, of the kernel) of each dimension."""
  parts = dict(re.findall(r'(\w+)=([\d_x\-]+)', text))
  column = lambda key, default: [
    int(value.split('_')[0])
    for value in parts.get(key, 'x'.join([default] * dims)).split('x')
    if dims
  ]
  keys = (('size', '1'), ('stride', '1'), ('pad', '0_0'), ('lhs_dilate', '1'), ('rhs_dilate', '1'))
  return list(zip(*(column(key, default) for key, default in keys), strict=True))


@functools.cache
def _met(extent, places, size, stride, low, left_holes, right_holes) -> int:
  """Pairs of an output place and a kernel place that meet an element, not padding or a hole."""
  at = np.arange(places, dtype=np.int64)[:, None] * stride - low
  total = 0
  for begin in range(0, size, 1024):  # In parts: both can be thousands.
    spot = at + np.arange(begin, min(size, begin + 1024), dtype=np.int64) * right_holes
    inside = (spot >= 0) & (spot < (extent - 1) * left_holes + 1)
    total += int((inside & (spot % left_holes == 0)).sum())
  return total


def memory_bytes(module: Module, scope: Computation, instruction: Instruction) -> float:
  """Bytes of device memory that an operation reads and writes; on-chip memory is not counted.

  Of an array that is only sliced, the slice counts, and of one that is updated in place, the
  update: a layer reads its own part of the stacked parameters.
  """
  if instruction.opcode == 'fusion':
    return _fusion_bytes(module, scope, instruction)
  if instruction.opcode.endswith('-start'):
    return max((array.bytes for array in instruction.arrays if not array.space), default=0)
  operands = [scope.instructions[n] for n in instruction.operands if n in scope.instructions]
  if instruction.opcode in ('dynamic-slice', 'gather', 'slice'):
    return 2 * _in_memory(instruction)
  if instruction.opcode == 'dynamic-update-slice':
    return 2 * _in_memory(operands[1])
  return sum(map(_in_memory, operands)) + _in_memory(instruction)


def _in_memory(instruction: Instruction) -> int:
  return sum(array.bytes for array in instruction.arrays if array.space == 0)


def _fusion_bytes(module: Module, scope: Computation, instruction: Instruction) -> float:
  inner = module.computations[instruction.called('calls')[0]]
  total = 0.0
  for number, name in enumerate(instruction.operands):
    operand = scope.instructions.get(name)
    if operand is not None and _in_memory(operand):
      total += _read(inner, inner.parameters[number])
  root = inner.root
  results = [inner.instructions[n] for n in root.operands] if root.opcode == 'tuple' else [root]
  for result, array in zip(results, instruction.arrays, strict=False):
    while result.opcode == 'bitcast':
      result = inner.instructions[result.operands[0]]
    updated = result.opcode == 'dynamic-update-slice'
    written = inner.instructions[result.operands[1]].bytes if updated else array.bytes
    total += written if array.space == 0 else 0
  return total


def _read(inner: Computation, value: Instruction) -> int:
  """Bytes of a fusion's parameter that its operations read."""
  total = 0
  for user in inner.users[value.name]:
    if user.opcode == 'bitcast':
      total += _read(inner, user)
    elif user.opcode in ('dynamic-slice', 'slice', 'gather') and user.operands[0] == value.name:
      total += user.bytes
    elif user.opcode != 'dynamic-update-slice' or user.operands[0] != value.name:
      return value.bytes
  return min(total, value.bytes)
