"""The text of a compiled program (HLO) as computations, and how often each of them runs.

Written from the printed form of optimized modules: `%name = type opcode(%operand, ...), attribute=
value, ...` in blocks `%computation (...) -> type {`. Nothing of XLA is imported, so that programs
for any platform, and texts made by hand, are read alike.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_BITS = {
  'pred': 8, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16, 's32': 32, 'u32': 32,
  's64': 64, 'u64': 64, 'f16': 16, 'bf16': 16, 'f32': 32, 'f64': 64, 'c64': 64, 'c128': 128,
  'f8e4m3fn': 8, 'f8e5m2': 8,
}  # fmt: skip
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?')
_HEAD = re.compile(r'^(?:ENTRY\s+)?%?([\w.\-]+)\s+\(.*->.*\{\s*$')
_INSTRUCTION = re.compile(r'^\s+(ROOT\s+)?%?([\w.\-]+) = (.*)$')
_SPACE = re.compile(r'S\((\d+)\)')


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a type: dtype, dims, and the memory space of its layout (0: device memory)."""

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def bytes(self) -> int:
    return math.ceil(math.prod(self.dims) * _BITS.get(self.dtype, 0) / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One operation. operands: names; arguments: what stands between its parentheses."""

  name: str
  opcode: str
  type: str
  operands: tuple[str, ...]
  arguments: str
  attributes: str
  is_root: bool

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    """Those of its result, which may be a tuple."""
    return parse_type(self.type)

  @property
  def bytes(self) -> int:
    return sum(array.bytes for array in self.arrays)

  def attribute(self, key: str) -> str | None:
    """The text of `key=...` up to the next comma or brace that is not inside brackets."""
    found = re.search(rf'(?:^|[\s,]){key}=', self.attributes)
    if not found:
      return None
    return self.attributes[found.end() : _end(self.attributes, found.end())]

  def called(self, *keys: str) -> list[str]:
    """Names of the computations that the attributes `keys` name."""
    names = []
    for key in keys:
      names += re.findall(r'%?([\w.\-]+)', self.attribute(key) or '')
    return names


@dataclasses.dataclass(frozen=True)
class Computation:
  name: str
  instructions: Mapping[str, Instruction]

  @property
  def root(self) -> Instruction:
    return next(i for i in self.instructions.values() if i.is_root)

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    """By number."""
    found = (i for i in self.instructions.values() if i.opcode == 'parameter')
    return {int(i.arguments): i for i in found}

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Name of an instruction -> those that read it."""
    found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
    for instruction in self.instructions.values():
      for operand in dict.fromkeys(instruction.operands):
        if operand in found:
          found[operand].append(instruction)
    return found


@dataclasses.dataclass(frozen=True)
class Module:
  computations: Mapping[str, Computation]
  entry: str

  def runs(self) -> Iterator[tuple[Computation, Instruction, float]]:
    """(computation, instruction, times) of every operation that is run by itself in one step.

    Bodies of loops are run as often as their trip count says, branches of a conditional once, the
    dearest being unknown; what is inside a fusion, a reduction or an asynchronous operation belongs
    to the operation that calls it.
    """
    yield from self._runs(self.computations[self.entry], 1.0)

  def _runs(self, computation, times):
    for instruction in computation.instructions.values():
      yield computation, instruction, times
      if instruction.opcode == 'while':
        (body,) = instruction.called('body')
        trips = self.trip_count(computation, instruction)
        yield from self._runs(self.computations[body], times * trips)
      elif instruction.opcode == 'call':
        yield from self._runs(self.computations[instruction.called('to_apply')[0]], times)
      elif instruction.opcode == 'conditional':
        branches = ('branch_computations', 'true_computation', 'false_computation')
        for name in instruction.called(*branches):
          yield from self._runs(self.computations[name], times)

  def inside(self, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
    """Operations of a fusion or asynchronous operation, at any depth."""
    if instruction.opcode in ('fusion', 'async-start'):
      for name in instruction.called('calls'):
        for inner in self.computations[name].instructions.values():
          yield self.computations[name], inner
          yield from self.inside(inner)

  def trip_count(self, computation: Computation, loop: Instruction) -> int:
    """How often the body of a while loop runs: what XLA noted, or a bound that is counted up to.

    Raises ValueError where neither is there.
    """
    noted = re.search(r'known_trip_count\D+(\d+)', loop.attributes)
    if noted:
      return int(noted.group(1))
    condition = self.computations[loop.called('condition')[0]]
    compare, scope = self._comparison(condition)
    bounds = [self._constant(scope, name) for name in compare.operands]
    known = [bound for bound in bounds if bound is not None]
    if len(known) != 1 or 'direction=LT' not in compare.attributes:
      raise ValueError(f'loop {loop.name}: its condition is not a comparison with a constant')
    return max(0, known[0] - self._start(computation, loop, compare, scope))

  def _comparison(self, condition: Computation) -> tuple[Instruction, Computation]:
    """The comparison a condition ends in, and the computation it is written in."""
    root, scope = condition.root, condition
    while root.opcode == 'fusion':
      inner = self.computations[root.called('calls')[0]]
      arguments = dict(zip(sorted(inner.parameters), root.operands, strict=True))
      # Constants that a fusion is given are looked up where it is called.
      given = {inner.parameters[n].name: scope.instructions[a] for n, a in arguments.items()}
      scope = Computation(inner.name, {**inner.instructions, **given})
      root = inner.root
    return root, scope

  def _constant(self, scope: Computation, name: str) -> int | None:
    found = scope.instructions.get(name)
    if found is not None and found.opcode == 'constant' and re.fullmatch(r'-?\d+', found.arguments):
      return int(found.arguments)
    return None

  def _start(
    self, computation: Computation, loop: Instruction, compare: Instruction, scope: Computation
  ) -> int:
    """What the counter begins with; 0 where that is not a constant."""
    counters = [scope.instructions.get(name) for name in compare.operands]
    place = next((c for c in counters if c is not None and c.opcode == 'get-tuple-element'), None)
    initial = computation.instructions.get(loop.operands[0])
    if place is None or initial is None or initial.opcode != 'tuple':
      return 0
    name = initial.operands[int(place.attribute('index'))]
    while computation.instructions.get(name) and computation.instructions[name].opcode == 'copy':
      name = computation.instructions[name].operands[0]
    return self._constant(computation, name) or 0


def parse_type(text: str) -> tuple[Array, ...]:
  """The arrays of a printed type, in order; tokens and opaque types have none."""
  arrays = []
  for dtype, dims, layout in _ARRAY.findall(text):
    space = _SPACE.search(layout or '')
    sizes = tuple(int(size.lstrip('<=')) for size in dims.split(',') if size)
    arrays.append(Array(dtype, sizes, int(space.group(1)) if space else 0))
  return tuple(arrays)


def parse(text: str) -> Module:
  """A module from its text. Raises ValueError if it has no entry computation."""
  computations, entry, name, found = {}, None, None, []
  for line in text.splitlines():
    head = _HEAD.match(line)
    if head and name is None:
      name, found = head.group(1), []
      if line.startswith('ENTRY'):
        entry = name
    elif line.rstrip() == '}' and name:
      instructions = map(_instruction, found)
      computations[name], name = Computation(name, {i.name: i for i in instructions}), None
    elif name and _INSTRUCTION.match(line):
      found.append(line)
    elif name and found:  # Attributes of a kernel go over several lines.
      found[-1] += line
  if entry is None:
    raise ValueError('the text has no ENTRY computation')
  return Module(computations, entry)


def _instruction(line: str) -> Instruction:
  root, name, rest = _INSTRUCTION.match(line).groups()
  end = _end(rest, 0, stop=' ')
  opening = rest.index('(', end)
  closing = _end(rest, opening + 1, stop=')')
  arguments = rest[opening + 1 : closing]
  return Instruction(
    name=name,
    opcode=rest[end:opening].strip(),
    type=rest[:end],
    operands=tuple(re.findall(r'%([\w.\-]+)', arguments)),
    arguments=arguments,
    attributes=rest[closing + 1 :],
    is_root=bool(root),
  )


def _end(text: str, start: int, stop: str = ',') -> int:
  """Index of the first `stop` from `start` on that is inside no bracket and no quotes."""
  depth, quoted, i = 0, False, start
  while i < len(text):
    c = text[i]
    if quoted:
      if c == '\\':
        i += 1
      quoted = c != '"'
    elif c == '"':
      quoted = True
    elif depth == 0 and c == stop:
      return i
    elif c in '([{':
      depth += 1
    elif c in ')]}':
      if depth == 0:
        return i
      depth -= 1
    i += 1
  return i
