"""Which parameters train. What is frozen has no gradient and no optimizer state.

The trained part is a tree of its own. Of a stack of which only some layers train, each run of
neighbouring ones is a leaf below a node `layers_from_FIRST`, so that the virtual paths of the part
are those of the whole.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from flaxlm import sharding
from flaxlm.config.tuning import TuningConfig
from flaxlm.errors import UserError
from flaxlm.paths import (
  leaf_paths,
  matching,
  nested,
  stack_of,
  virtual_paths,
)
from flaxlm.types import DELTA


@dataclasses.dataclass(frozen=True)
class LayerRange:
  """Layers [start, stop) of a stacked leaf, and the path they have in the trained tree."""

  path: str
  start: int
  stop: int


@dataclasses.dataclass(frozen=True)
class Partition:
  """trained: path of a leaf -> None where all of it trains, or the ranges that do.

  Frozen leaves are absent. `trained` itself is None where every parameter trains.
  """

  trained: Mapping[str, Sequence[LayerRange] | None] | None = None

  def take(self, params: Any) -> Any:
    """The trained part of a tree of parameters (arrays or their shapes), or of shardings."""
    if self.trained is None:
      return params
    found = {}
    for path, leaf in leaf_paths(params).items():
      if path not in self.trained:
        continue
      runs = self.trained[path]
      if runs is None:
        found[path] = leaf
      else:
        found |= {run.path: _layers(leaf, run) for run in runs}
    return nested(found)

  def put(self, params: Any, trained: Any) -> Any:
    """`params` with the trained part in its place; frozen values pass through as they are."""
    if self.trained is None:
      return trained
    parts = leaf_paths(trained)
    found = {}
    for path, leaf in leaf_paths(params).items():
      if path not in self.trained:
        found[path] = leaf
      elif self.trained[path] is None:
        found[path] = parts[path]
      else:
        # Concatenated, not written into: the gradient of a layer is then a slice of what the stack
        # splits again, and those of frozen layers are never computed.
        pieces, at = [], 0
        for run in self.trained[path]:
          pieces += [leaf[at : run.start], parts[run.path]]
          at = run.stop
        found[path] = jnp.concatenate([*pieces, leaf[at:]])
    return nested(found)

  def count(self, params: Any) -> tuple[int, int]:
    """(values that train, all values) of a tree of parameters."""
    size = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    return size(jax.eval_shape(self.take, params)), size(params)


EVERYTHING = Partition()


def _layers(leaf: Any, run: LayerRange) -> Any:
  """The layers of a run; of a sharding, that of some layers of the leaf."""
  if isinstance(leaf, NamedSharding):
    return sharding.undivided(leaf, 0)
  return leaf[run.start : run.stop]


def make_partition(config: TuningConfig, params: Any) -> Partition:
  """The partition that a config asks for.

  Args:
    config: `config.tuning`.
    params: tree of all parameters, or of their shapes.

  Raises:
    UserError: for a pattern that is malformed or matches no leaf, and if nothing would train.
  """
  leaves = leaf_paths(params)
  names = {path: virtual_paths(path, leaf) for path, leaf in leaves.items()}
  everything = [name for group in names.values() for name in group]
  trains = set(everything)
  if config.trainable:
    trains = matching('config.tuning.trainable', config.trainable, everything)
  elif config.lora_rank:
    trains = {name for name in everything if name.startswith('head/')}
  if config.lora_rank:
    trains |= {name for name in everything if name.startswith(f'{DELTA}/')}
  trains -= matching('config.tuning.frozen', config.frozen, everything)
  if config.lora_rank and not any(name.startswith(f'{DELTA}/') for name in trains):
    key = 'config.tuning.frozen' if config.lora_targets else 'config.tuning.lora_targets'
    raise UserError(f'{key}: nothing of what LoRA adds below {DELTA}/ would train')
  if not trains:
    raise UserError('config.tuning.frozen: no parameter would train')
  if len(trains) == len(everything):
    return EVERYTHING
  trained = {}
  for path, group in names.items():
    marks = [name in trains for name in group]
    if all(marks):
      trained[path] = None
    elif any(marks):
      trained[path] = ranges_of(path, marks)
  return Partition(trained)


def ranges_of(path: str, marks: Sequence[bool]) -> list[LayerRange]:
  """Ranges of neighbouring layers that are marked; a range of all of them keeps the path."""
  if all(marks):
    return [LayerRange(path, 0, len(marks))]
  if not any(marks):
    return []
  nodes, (at, first) = path.split('/'), stack_of(path)
  runs, start = [], None
  for layer, mark in enumerate([*marks, False]):
    if mark and start is None:
      start = layer
    elif not mark and start is not None:
      nodes[at] = f'layers_from_{first + start}'
      runs.append(LayerRange('/'.join(nodes), start, layer))
      start = None
  return runs
