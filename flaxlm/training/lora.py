"""LoRA (Hu et al. 2022): kernels W + alpha / rank * A B, of which only A and B train.

The factors of the kernel at `trunk/.../kernel` lie at `delta/trunk/.../kernel/a` and `/b`. They are
merged before the model sees its parameters, so no layer knows of them. As the input of a layer is
not split, LoRA has no dropout of its own.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.config.tuning import TuningConfig
from flaxlm.paths import is_stacked, leaf_paths, matching, nested, stack_of, virtual_paths
from flaxlm.training.layout import boxes_of, make_layout
from flaxlm.training.partition import ranges_of
from flaxlm.types import DELTA

_KEY = 'config.tuning.lora_targets'


def add_deltas(config: TuningConfig, boxed: Any, key: jax.Array) -> Any:
  """Parameters boxed with their logical axes, with the factors that `config` asks for.

  A is normal with variance 1 / fan_in and B is 0, so that the model is the one without them.

  Raises:
    UserError: for a target that is malformed or names no kernel.
  """
  if not config.lora_rank:
    return boxed
  inputs = make_layout(boxed).inputs
  boxes = boxes_of(boxed)
  names = {path: virtual_paths(path, boxes[path].value) for path in inputs}
  chosen = matching(_KEY, config.lora_targets, [n for group in names.values() for n in group])
  deltas: dict[str, nn.Partitioned] = {}
  for path, group in names.items():
    leaf, stacked = boxes[path], int(is_stacked(path, boxes[path].value))
    cut = stacked + inputs[path]
    shape, axes = leaf.value.shape, leaf.names
    for run in ranges_of(path, [name in chosen for name in group]):
      layers = (run.stop - run.start,) if stacked else ()
      place = zlib.crc32(run.path.encode())
      deviation = math.prod(shape[stacked:cut]) ** -0.5
      factor = jax.random.fold_in(key, place)
      a = deviation * jax.random.normal(factor, (*layers, *shape[stacked:cut], config.lora_rank))
      b = jnp.zeros((*layers, config.lora_rank, *shape[cut:]))
      deltas[f'{run.path}/a'] = nn.Partitioned(a, (*axes[:cut], 'rank'))
      deltas[f'{run.path}/b'] = nn.Partitioned(b, (*axes[:stacked], 'rank', *axes[cut:]))
  return {**boxed, DELTA: nested(deltas)}


def merge(config: TuningConfig, params: Mapping[str, Any]) -> Mapping[str, Any]:
  """The parameters that the model takes: without factors, their products added to the kernels."""
  if DELTA not in params:
    return params
  leaves = leaf_paths({name: node for name, node in params.items() if name != DELTA})
  factors = leaf_paths(params[DELTA])
  for path in factors:
    if path.endswith('/a'):
      name = path.removesuffix('/a')
      whole, start = _whole(name, leaves)
      product = _product(factors[path], factors[f'{name}/b'], leaves[whole].ndim)
      add = product * (config.lora_alpha / config.lora_rank)
      stop = start + add.shape[0]
      leaves[whole] = leaves[whole].at[start:stop].add(add.astype(leaves[whole].dtype))
  return nested(leaves)


def _product(a: jax.Array, b: jax.Array, ndim: int) -> jax.Array:
  """a [(N,) *inputs, R] and b [(N,) R, *outputs] -> [(N,) *inputs, *outputs], of `ndim` axes."""
  rank = a.shape[-1]
  stacked = a.ndim + b.ndim - 2 - ndim
  inputs, outputs = a.shape[stacked:-1], b.shape[stacked + 1 :]
  layers = a.shape[:stacked]
  a = a.reshape(*layers, math.prod(inputs), rank)
  b = b.reshape(*layers, rank, math.prod(outputs))
  return jnp.matmul(a, b, precision='highest').reshape(*layers, *inputs, *outputs)


def _whole(path: str, leaves: Mapping[str, Any]) -> tuple[str, int]:
  """(path of the kernel that has the layers of the factors at `path`, the first of them in it)."""
  if path in leaves:
    return path, 0
  nodes, (at, first) = path.split('/'), stack_of(path)
  return '/'.join([*nodes[:at], 'layers', *nodes[at + 1 :]]), first
