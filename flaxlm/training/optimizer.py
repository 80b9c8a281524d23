"""Learning-rate schedules and the gradient transformation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxlm.config.schema import OptimizerConfig
from flaxlm.training.paths import compile_pattern, unmatched, virtual_paths

Schedule = Callable[[Any], Any]
BENT_BY_TOTAL_STEPS = ('linear', 'cosine')


def make_schedule(config: OptimizerConfig, total_steps: int) -> Schedule:
  """The learning rate of an update as a function of the updates before it.

  `schedule(0)` is the rate of the first update, so the warm-up begins at peak / warmup_steps and
  not at 0; update number `warmup_steps` is the first at the peak, and update number `total_steps`
  has the peak times `end_ratio` exactly (linear, cosine). `rsqrt` is the peak times
  sqrt(warmup_steps / update), as of T5 (Raffel et al. 2020, section 3.1.2) for its pretraining.

  Args:
    config: shape and peak.
    total_steps: updates in the run.

  Returns:
    count (int, traced or not) -> float32 scalar. Counts beyond the end keep the last rate of
    linear and cosine.
  """
  warmup = config.warmup_steps
  span = max(total_steps - warmup, 1)

  def schedule(count: Any) -> Any:
    update = jnp.asarray(count, jnp.float32) + 1.0
    progress = jnp.clip((update - warmup) / span, 0.0, 1.0)
    match config.schedule:
      case 'linear':
        share = 1.0 - progress
      case 'cosine':
        share = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
      case 'rsqrt':
        share = jnp.sqrt(max(warmup, 1) / jnp.maximum(update, 1.0))
      case _:
        share = jnp.ones_like(update)
    if config.schedule in BENT_BY_TOTAL_STEPS:
      share = config.end_ratio + (1.0 - config.end_ratio) * share
    if warmup:
      share = jnp.where(update < warmup, update / warmup, share)
    return config.learning_rate * share

  return schedule


def decay_factors(config: OptimizerConfig, params: Any) -> Any:
  """What weight decay is multiplied by: a tree like `params` of bools or of float32 [N, 1, ...].

  `decay_exclude` sees virtual paths, so that single layers of a stack can be named; a stack whose
  layers differ gets a vector along its first axis.

  Raises:
    UserError: for a pattern that is malformed, or that matches no leaf and is not a default one
      (models without biases keep the default pattern for them).
  """
  key = 'config.optimizer.decay_exclude'
  patterns = [compile_pattern(key, pattern) for pattern in config.decay_exclude]
  found = set()
  seen = []

  def factor(path: Any, leaf: Any) -> Any:
    paths = virtual_paths(jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
    seen.extend(paths)
    decayed = []
    for virtual in paths:
      matches = [pattern.pattern for pattern in patterns if pattern.search(virtual)]
      found.update(matches)
      decayed.append(not matches)
    if len(set(decayed)) == 1:
      return decayed[0]
    return np.asarray(decayed, np.float32).reshape((-1,) + (1,) * (len(leaf.shape) - 1))

  factors = jax.tree_util.tree_map_with_path(factor, params)
  for pattern in config.decay_exclude:
    if pattern not in found and pattern not in OptimizerConfig().decay_exclude:
      raise unmatched(key, pattern, seen)
  return factors


def add_decay(config: OptimizerConfig) -> optax.GradientTransformation:
  """Adds weight_decay * params to the update, except where `decay_exclude` matches.

  Decoupled as in AdamW (Loshchilov and Hutter 2019, algorithm 2), multiplied by the learning rate
  afterwards. optax.add_decayed_weights masks whole leaves only; here a stack may be part excluded.
  """

  def init(params: Any) -> optax.EmptyState:
    decay_factors(config, params)  # a pattern that matches nothing is reported before training
    return optax.EmptyState()

  def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, Any]:
    def add(update: Any, param: Any, factor: Any) -> Any:
      if factor is False:
        return update
      scale = config.weight_decay if factor is True else config.weight_decay * factor
      return update + (scale * param).astype(update.dtype)

    return jax.tree.map(add, updates, params, decay_factors(config, params)), state

  return optax.GradientTransformation(init, update)


def make_optimizer(
  config: OptimizerConfig, total_steps: int
) -> tuple[optax.GradientTransformation, Schedule]:
  """Clipping by the global norm, the update rule, decoupled decay and the schedule.

  Accumulation over micro-batches is the step's: it needs the weights of each of them.

  Args:
    config: `config.optimizer`.
    total_steps: updates in the run; the end of the linear and cosine schedules.

  Returns:
    The transformation, whose update needs `params`, and the schedule (see `make_schedule`).
  """
  schedule = make_schedule(config, total_steps)
  parts = []
  if config.clip_norm:
    parts.append(optax.clip_by_global_norm(config.clip_norm))
  if config.name == 'adamw':
    parts.append(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps))
    if config.weight_decay:
      parts.append(add_decay(config))
  elif config.momentum:
    parts.append(optax.trace(decay=config.momentum))
  parts.append(optax.scale_by_learning_rate(schedule))
  return optax.chain(*parts), schedule
