"""Learning-rate schedules and the gradient transformation."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxlm.config.optimization import OptimizerConfig
from flaxlm.config.tuning import TuningConfig
from flaxlm.paths import compile_pattern, path_name, unmatched, virtual_paths
from flaxlm.training.layout import Layout
from flaxlm.training.update_rules import make_update_rule

Schedule = Callable[[Any], Any]
BENT_BY_TOTAL_STEPS = ('linear', 'cosine', 'wsd')
NO_LAYOUT = Layout({}, {})
ALL_ALIKE = TuningConfig()


def make_schedule(config: OptimizerConfig, total_steps: int, emb_dim: int = 1) -> Schedule:
  """The learning rate of an update as a function of the updates before it.

  `schedule(0)` is the rate of the first update, so the warm-up begins at peak / warmup_steps and
  not at 0; update number `warmup_steps` is the first at the peak, and update number `total_steps`
  has the peak times `end_ratio` exactly (linear, cosine, wsd). `rsqrt` is the peak times
  sqrt(warmup_steps / update), as of T5 (Raffel et al. 2020, section 3.1.2) for its pretraining;
  `noam` is the same with a peak of learning_rate * (emb_dim * warmup_steps)^-0.5 (Vaswani et al.
  2017, equation 3). `wsd` keeps the peak until the last `decay_share` of the run (Hu et al. 2024,
  section 4.2).

  Args:
    config: shape and peak.
    total_steps: updates in the run.
    emb_dim: width D of the model; of `noam` only.

  Returns:
    count (int, traced or not) -> float32 scalar. Counts beyond the end keep the last rate of
    linear, cosine and wsd.
  """
  warmup = config.warmup_steps
  span = max(total_steps - warmup, 1)
  peak = config.learning_rate
  if config.schedule == 'noam':
    peak *= (emb_dim * max(warmup, 1)) ** -0.5
  falling = max(config.decay_share * total_steps, 1.0)

  def schedule(count: Any) -> Any:
    update = jnp.asarray(count, jnp.float32) + 1.0
    progress = jnp.clip((update - warmup) / span, 0.0, 1.0)
    match config.schedule:
      case 'linear':
        share = 1.0 - progress
      case 'cosine':
        share = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
      case 'wsd':
        share = jnp.clip((total_steps - update) / falling, 0.0, 1.0)
      case 'rsqrt' | 'noam':
        share = jnp.sqrt(max(warmup, 1) / jnp.maximum(update, 1.0))
      case _:
        share = jnp.ones_like(update)
    if config.schedule in BENT_BY_TOTAL_STEPS:
      share = config.end_ratio + (1.0 - config.end_ratio) * share
    if warmup:
      share = jnp.where(update < warmup, update / warmup, share)
    return peak * share

  return schedule


def decay_factors(config: OptimizerConfig, params: Any, names: Collection[str] = ()) -> Any:
  """What weight decay is multiplied by: a tree like `params` of bools or of float32 [N, 1, ...].

  `decay_exclude` sees virtual paths, so that single layers of a stack can be named; a stack whose
  layers differ gets a vector along its first axis.

  names: virtual paths of leaves that do not train, which a pattern may be of, too.

  Raises:
    UserError: for a pattern that is malformed, or that matches no leaf and is not a default one
      (models without biases keep the default pattern for them).
  """
  key = 'config.optimizer.decay_exclude'
  patterns = [compile_pattern(key, pattern) for pattern in config.decay_exclude]
  found = set()
  seen = []

  def factor(path: Any, leaf: Any) -> Any:
    paths = virtual_paths(path_name(path), leaf)
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
  found |= {p.pattern for p in patterns if any(map(p.search, names))}
  for pattern in config.decay_exclude:
    if pattern not in found and pattern not in OptimizerConfig().decay_exclude:
      raise unmatched(key, pattern, seen)
  return factors


def add_decay(config: OptimizerConfig, names: Collection[str] = ()) -> optax.GradientTransformation:
  """Adds weight_decay * params to the update, except where `decay_exclude` matches.

  Decoupled as in AdamW (Loshchilov and Hutter 2019, algorithm 2), multiplied by the learning rate
  afterwards. optax.add_decayed_weights masks whole leaves only; here a stack may be part excluded.
  """

  def init(params: Any) -> optax.EmptyState:
    # A pattern that matches nothing is reported before training.
    decay_factors(config, params, names)
    return optax.EmptyState()

  def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, Any]:
    def add(update: Any, param: Any, factor: Any) -> Any:
      if factor is False:
        return update
      scale = config.weight_decay if factor is True else config.weight_decay * factor
      return update + (scale * param).astype(update.dtype)

    return jax.tree.map(add, updates, params, decay_factors(config, params, names)), state

  return optax.GradientTransformation(init, update)


def scale_by_distance(
  config: TuningConfig, unfreeze_every: int, distances: Mapping[str, int]
) -> optax.GradientTransformation:
  """Rates that fall, and layers that begin later, with the distance from the head.

  layer_decay: the update is multiplied by layer_decay^distance (Clark et al. 2020, appendix B).
  unfreeze_every: leaves at distance n move after n * unfreeze_every updates (gradual unfreezing:
  Howard and Ruder 2018, section 3.3). Until then their moments see the gradients already, so that a
  first update has the size of any other; values and decay wait.

  Args:
    config: `config.tuning`.
    unfreeze_every: in updates; 0: all leaves move from the start.
    distances: of the virtual path of each leaf.
  """

  def of_leaf(path: Any, leaf: Any) -> np.ndarray:
    """Distances that broadcast against the leaf: [] or [N, 1, ...]."""
    names = virtual_paths(path_name(path), leaf)
    found = np.array([distances[name] for name in names])
    same = (found == found[0]).all()
    return found[0] if same else found.reshape(-1, *[1] * (len(leaf.shape) - 1))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del params

    def scale(path: Any, leaf: Any) -> Any:
      distance = of_leaf(path, leaf)
      factor = np.float32(config.layer_decay) ** distance
      if unfreeze_every:
        factor = jnp.where(state.count >= distance * unfreeze_every, factor, 0.0)
      return leaf * factor

    scaled = jax.tree_util.tree_map_with_path(scale, updates)
    return scaled, optax.ScaleByScheduleState(state.count + 1)

  init = lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
  return optax.GradientTransformation(init, update)


def make_optimizer(
  config: OptimizerConfig,
  total_steps: int,
  *,
  emb_dim: int = 1,
  layout: Layout = NO_LAYOUT,
  tuning: TuningConfig = ALL_ALIKE,
  unfreeze_every: int = 0,
) -> tuple[optax.GradientTransformation, Schedule]:
  """Clipping by the global norm, the update rule, decoupled decay and the schedule.

  Accumulation over micro-batches is the step's: it needs the weights of each of them.

  Args:
    config: `config.optimizer`.
    total_steps: updates in the run; the end of the schedules that fall.
    emb_dim: width D of the model.
    layout: of the parameters.
    tuning: `config.tuning`; its rates by layer.
    unfreeze_every: updates from which on one more layer moves; 0: all from the start.

  Returns:
    The transformation, whose update needs `params`, and the schedule (see `make_schedule`).
  """
  schedule = make_schedule(config, total_steps, emb_dim)
  parts = []
  if config.clip_norm:
    parts.append(optax.clip_by_global_norm(config.clip_norm))
  parts += make_update_rule(config, layout)
  if config.name != 'sgd' and config.weight_decay:
    parts.append(add_decay(config, layout.distances))
  if tuning.layer_decay != 1.0 or unfreeze_every:
    parts.append(scale_by_distance(tuning, unfreeze_every, layout.distances))
  parts.append(optax.scale_by_learning_rate(schedule))
  return optax.chain(*parts), schedule
