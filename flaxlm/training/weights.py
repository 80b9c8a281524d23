"""The weights that evaluation, decoding and export use, of a checkpoint or of several."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from flaxlm.config import tree
from flaxlm.config.schema import Config
from flaxlm.paths import nested
from flaxlm.training import checkpoint, lora
from flaxlm.training.partition import make_partition
from flaxlm.types import EMA


def is_averaged(config: Config) -> bool:
  """Whether the moving average stands for the parameters."""
  return bool(config.optimizer.ema_decay) and config.evaluation.ema


def stored_parts(config: Config, params: Any, ema: Any) -> dict[str, Any]:
  """The parts of a state that `evaluated` needs, of those given: what to read of a checkpoint."""
  return {'params': params} | ({'extras': {EMA: ema}} if is_averaged(config) else {})


def evaluated(config: Config, params: Any, extras: Mapping[str, Any] | None = None) -> Any:
  """{'trunk', 'head'}: the moving average where the config asks for it, LoRA merged."""
  if is_averaged(config):
    params = make_partition(config.tuning, params).put(params, extras[EMA])
  return lora.merge(config.tuning, params)


def mean(trees: Iterable[Any]) -> Any:
  """The mean of trees of arrays, leaf by leaf; holds two of them at a time.

  Averaging the last checkpoints: Vaswani et al. 2017, section 6.1.
  """
  total, count = None, 0
  for one in trees:
    count += 1
    total = one if total is None else jax.tree.map(jnp.add, total, one)
  return jax.tree.map(lambda leaf: (leaf / count).astype(leaf.dtype), total)


def read(directory: epath.PathLike, step: int, meta: Mapping[str, Any], placed: Any) -> Any:
  """What `evaluated` makes of a checkpoint, as it was stored and without an experiment.

  Args:
    directory: of the checkpoints.
    step: which one.
    meta: its description.
    placed: the sharding of every leaf.

  Raises:
    Damaged: if a leaf cannot be read or its digest differs.
  """
  config = tree.from_dict(meta['config'])
  place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)
  params = nested(checkpoint.stored_params(directory, step))
  ema = jax.eval_shape(make_partition(config.tuning, params).take, params)
  parts = jax.tree.map(place, stored_parts(config, params, ema))
  return evaluated(config, **checkpoint.restore_tree(directory, step, parts, meta))
