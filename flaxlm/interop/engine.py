"""Tensors of a file <-> parameters, by a family's table; every one of both is accounted for."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.errors import UserError, nearest
from flaxlm.interop.files import EXACT, NUMPY
from flaxlm.interop.rules import Buffer, Entry, Kept, Rule

LAYER = '{layer}'


class Source(Protocol):
  """Named tensors: `files.Tensors`, or anything that reads like it."""

  dtypes: Mapping[str, str]
  shapes: Mapping[str, tuple[int, ...]]

  def read(self, name: str) -> np.ndarray: ...


@dataclasses.dataclass
class Loaded:
  """What became of a source.

  leaves: float32 parameter by path; buffers: names of tensors that an export rebuilds; kept:
  tensors that the model does not use, by name; absent: parameters without a tensor, where the
  source may lack it.
  """

  leaves: dict[str, np.ndarray]
  buffers: list[str]
  kept: dict[str, np.ndarray]
  absent: list[str]


@dataclasses.dataclass(frozen=True)
class _Place:
  """One tensor of a rule: its possible names, and the layer of its parameters (None: unstacked)."""

  rule: Rule
  names: tuple[str, ...]
  layer: int | None


def load(
  entries: Sequence[Entry],
  source: Source,
  leaves: Mapping[str, jax.ShapeDtypeStruct],
  trunk_only: bool = False,
) -> Loaded:
  """Parameters from tensors.

  Args:
    entries: the family's table.
    source: the tensors.
    leaves: path -> shape of every parameter of the model.
    trunk_only: whether parameters of the head may have no tensor.

  Returns:
    Every parameter but those absent, in float32.

  Raises:
    UserError: for a tensor that no rule names, a parameter that no tensor fills, a shape or dtype
      that does not fit, values that are not finite, copies that differ, and a buffer that is not
      what it should be.
  """
  found = Loaded({}, [], {}, [])
  places = list(_places(entries, leaves, source))
  named = {name for place in places for name in place.names}
  _other_tensors(entries, source, named, found)
  for place in places:
    present = [name for name in place.names if name in source.shapes]
    if present:
      _fill(place, present, source, leaves, found)
    elif place.rule.optional or (trunk_only and all(map(in_head, place.rule.paths))):
      found.absent += [path for path in place.rule.paths if path not in found.absent]
    else:
      near = nearest(place.names[0], [name for name in source.shapes if name not in named])
      raise UserError(
        f'the weights have no tensor {place.names[0]}, which fills {place.rule.paths[0]}{near}'
      )
  for path in leaves:
    if path not in found.leaves and path not in found.absent:
      if not (trunk_only and in_head(path)):
        raise UserError(f'no tensor fills the parameter {path}')
      found.absent.append(path)
  return found


def in_head(path: str) -> bool:
  """Whether a parameter is one of the head, and not of the trunk."""
  return path.startswith('head/')


def _places(
  entries: Sequence[Entry], leaves: Mapping[str, Any], source: Source | None = None
) -> Iterator[_Place]:
  """Every tensor that the rules name. A rule without any parameter in the model names none."""
  for rule in entries:
    if not isinstance(rule, Rule):
      continue
    known = [path for path in rule.paths if path in leaves]
    if not known:
      continue
    names = rule.tensor, *rule.copies
    if LAYER not in rule.tensor:
      yield _Place(rule, names, None)
      continue
    for slot in range(leaves[known[0]].shape[0]):
      number = str(rule.first + slot)
      yield _Place(rule, tuple(name.replace(LAYER, number) for name in names), slot)


def _fill(
  place: _Place,
  present: Sequence[str],
  source: Source,
  leaves: Mapping[str, jax.ShapeDtypeStruct],
  found: Loaded,
) -> None:
  """Puts one tensor into its parameters."""
  rule, name = place.rule, present[0]
  shapes = [_shape(leaves[path], place.layer) for path in rule.paths]
  expected = rule.transform.shape(shapes)
  if source.shapes[name] != expected:
    raise UserError(
      f'{name} has shape {list(source.shapes[name])}; config.json implies {list(expected)}'
    )
  if source.dtypes[name] not in EXACT:
    raise UserError(
      f'{name} has dtype {source.dtypes[name]}; those read are {", ".join(EXACT)}, which float32 '
      'holds exactly'
    )
  tensor = source.read(name)
  for copy in present[1:]:
    if source.shapes[copy] != expected or not np.array_equal(
      source.read(copy), tensor, equal_nan=True
    ):
      raise UserError(f'{copy} differs from {name}, to which this architecture ties it')
  if not np.isfinite(tensor).all():
    raise UserError(f'{name} holds values that are not finite')
  parts = rule.transform.load(tensor, shapes)
  for path, shape, part in zip(rule.paths, shapes, parts, strict=True):
    if path not in found.leaves:
      found.leaves[path] = np.zeros(leaves[path].shape, np.float32)
    leaf = found.leaves[path]
    leaf[... if place.layer is None else place.layer] = part.reshape(shape).astype(np.float32)


def _shape(leaf: Any, layer: int | None) -> tuple[int, ...]:
  return tuple(leaf.shape if layer is None else leaf.shape[1:])


def _unread(entries: Sequence[Entry]) -> Callable[[str], Buffer | Kept | None]:
  """Name of a tensor -> the entry by which no parameter holds it, if there is one."""
  number = lambda name: re.escape(name).replace(re.escape(LAYER), r'\d+')
  others = [(re.compile(number(e.tensor)), e) for e in entries if not isinstance(e, Rule)]
  return lambda name: next((e for pattern, e in others if pattern.fullmatch(name)), None)


def _other_tensors(
  entries: Sequence[Entry], source: Source, named: set[str], found: Loaded
) -> None:
  """Buffers and tensors to keep; UserError for those that no entry names."""
  entry_of = _unread(entries)
  for name in source.shapes:
    if name in named:
      continue
    entry = entry_of(name)
    if entry is None:
      raise UserError(
        f'no rule names the tensor {name} {list(source.shapes[name])}{nearest(name, named)}'
      )
    tensor = source.read(name)
    if isinstance(entry, Buffer):
      if not np.array_equal(tensor, entry.values(tensor.shape).astype(tensor.dtype)):
        raise UserError(
          f'{name}: the model has no such parameter, and it is not the usual constant'
        )
      found.buffers.append(name)
    else:
      found.kept[name] = tensor


def save(
  entries: Sequence[Entry],
  leaves: Mapping[str, np.ndarray],
  known: Mapping[str, tuple[str, Sequence[int]]],
  kept: Mapping[str, np.ndarray],
  dtype: str = 'F32',
) -> dict[str, np.ndarray]:
  """Tensors from parameters: the inverse of `load`.

  Args:
    entries: the family's table.
    leaves: parameter by path; those under no rule are the caller's mistake.
    known: tensor -> (dtype, shape) of the source that was imported, in its order; empty without.
    kept: what `load` kept.
    dtype: of tensors that the source did not have.

  Returns:
    Tensors by name, in the order of the source.

  Raises:
    UserError: for a parameter that the family's files have no place for.
  """
  tensors: dict[str, np.ndarray] = {}
  used: set[str] = set()
  for place in _places(entries, leaves):
    rule = place.rule
    if any(path not in leaves for path in rule.paths):
      raise UserError(f'{place.names[0]} is made of {rule.paths}, not all of which are there')
    used.update(rule.paths)
    names = [name for name in place.names if name in known]
    names = names or (place.names if rule.write_copies else place.names[:1])
    parts = [leaves[p] if place.layer is None else leaves[p][place.layer] for p in rule.paths]
    tensor = rule.transform.save(parts)
    for name in names:
      tensors[name] = _cast(tensor, known[name][0] if name in known else dtype, name)
  left = sorted(set(leaves) - used)
  if left:
    raise UserError(f'the parameter {left[0]} has no place in a file of this architecture')
  entry_of = _unread(entries)
  for name, (own_dtype, shape) in known.items():
    entry = entry_of(name)
    if name in tensors or entry is None:
      continue
    if isinstance(entry, Buffer):
      tensors[name] = entry.values(tuple(shape)).astype(_numpy(own_dtype))
    else:
      tensors[name] = kept[name]
  order = {name: number for number, name in enumerate(known)}
  return {n: tensors[n] for n in sorted(tensors, key=lambda n: order.get(n, len(order)))}


def _cast(tensor: np.ndarray, dtype: str, name: str) -> np.ndarray:
  """The tensor in a dtype of safetensors; UserError for values that are too large for it."""
  with np.errstate(over='ignore'):
    found = tensor.astype(_numpy(dtype))
  if found.dtype == tensor.dtype:
    return found
  if np.isfinite(tensor).all() and not np.isfinite(found.astype(np.float32)).all():
    raise UserError(f'{name} holds {np.abs(tensor).max():g}, which {found.dtype} cannot')
  return found


def _numpy(name: str) -> np.dtype:
  """numpy's dtype of safetensors' name."""
  others = {'U8': 'uint8', 'I64': 'int64', 'I32': 'int32', 'BOOL': 'bool', 'F64': 'float64'}
  text = (NUMPY | others)[name]
  return np.dtype(jnp.bfloat16 if text == 'bfloat16' else text)
