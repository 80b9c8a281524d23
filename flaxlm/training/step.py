"""The training step and the evaluation step: pure functions of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxlm.config.safety import GuardConfig
from flaxlm.models.model import Model
from flaxlm.objectives.base import Objective
from flaxlm.training import guard as guards
from flaxlm.training.partition import EVERYTHING, Partition
from flaxlm.types import EMA, MEMORY, Array, Batch, Mean, TrainState

Metrics = dict[str, Any]
NO_GUARD = GuardConfig()


def make_train_step(
  model: Model,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  num_microbatches: int = 1,
  axis_name: str | None = None,
  partition: Partition = EVERYTHING,
  weights_of: Callable[[Any], Any] = lambda params: params,
  ema_decay: float = 0.0,
  r_drop: float = 0.0,
  guard: GuardConfig = NO_GUARD,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns (state, batch) -> (state, metrics).

  The denominator of each loss term is taken on the global batch, before it is split into
  micro-batches or devices, so that their number never changes the loss. With `axis_name` the step
  runs per device under a mapped axis: denominators are summed over it before the loss, gradients
  before the update. `optimizer` sees the part of the parameters that `partition` says trains;
  `weights_of` makes what the model takes of all of them. `extras['ema']`, where there is a decay,
  moves by 1 - ema_decay, or 9 / (10 + step) if that is more, towards the parameters that train.
  With `r_drop` the model runs twice, with two draws of dropout, and the loss is the mean of both
  plus r_drop / 2 times `objective.divergence`: half of what Wu et al. 2021 (R-Drop, equation 3)
  minimise.

  metrics: Means of the objective, `loss` (what is minimised), `grad_norm` before clipping, `tokens`
  (not padding) and `leaf_norms` [leaves that train], the gradient norm of each.

  The trunk's memory of the rows before, where the state has one in `extras`, goes in with the batch
  and comes out for the next.

  With a `guard` that is on, a bad step changes nothing but what `extras['guard']` counts, and the
  metrics have those of `guard.settle`, too.
  """
  reduce = (lambda x: x) if axis_name is None else (lambda x: jax.lax.psum(x, axis_name))

  loss_and_metrics = _make_loss(model, objective, partition, weights_of, r_drop)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    weights = reduce(objective.weights(batch))
    trained = partition.take(state.params)
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    if axis_name is not None:
      key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def gradient(part, number):
      part_key = jax.random.fold_in(key, number)
      differentiated = jax.grad(loss_and_metrics, has_aux=True)
      return differentiated(trained, state.params, part, weights, part_key)

    sums, memory = _accumulate(gradient, (batch, state.extras.get(MEMORY)), num_microbatches)
    grads, metrics = reduce(sums)
    norms = jnp.stack([jnp.sqrt(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(grads)])
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    params = partition.put(state.params, trained)
    extras = dict(state.extras)
    if ema_decay:
      extras[EMA] = _average(extras[EMA], trained, ema_decay, state.step)
    if memory is not None:
      extras[MEMORY] = memory
    # The summed parts of `loss` already are its value on the whole batch.
    metrics['loss'] = Mean(metrics['loss'].total, jnp.ones(()))
    metrics |= {'grad_norm': jnp.sqrt(jnp.sum(jnp.square(norms))), 'leaf_norms': norms}
    after = TrainState(state.step + 1, params, opt_state, extras)
    if guard.is_on:
      loss, norm = metrics['loss'].total, metrics['grad_norm']
      after, judged = guards.settle(guard, state, after, loss, norm)
      metrics |= judged
    return after, metrics

  return step


def _make_loss(
  model: Model,
  objective: Objective,
  partition: Partition,
  weights_of: Callable[[Any], Any],
  r_drop: float,
) -> Callable[..., tuple[Array, tuple[Metrics, Any]]]:
  """Returns (trained, params, (batch, memory), weights, key) -> (loss, (metrics, memory)).

  The loss is what the rows of the batch add to that of the global batch, whose denominators are
  `weights`; `trained` are the leaves to differentiate by.
  """

  def loss_and_metrics(trained, params, part, weights, key):
    batch, memory = part
    params = weights_of(partition.put(params, trained))
    apply = lambda key: model.apply(
      {'params': params}, batch, False, rngs={'dropout': key}, **_recurrent(memory)
    )
    outputs, trunk = apply(key)
    totals, metrics = objective.losses(outputs, batch)
    if r_drop:
      second, _ = apply(jax.random.fold_in(key, 0))
      others, _ = objective.losses(second, batch)
      apart = objective.divergence(outputs, second, batch)
      totals = {t: (totals[t] + others[t]) / 2 + r_drop / 2 * apart.get(t, 0.0) for t in totals}
    loss = sum(totals[term] / jnp.where(weights[term] > 0, weights[term], 1.0) for term in totals)
    metrics = metrics | {'loss': Mean(loss, 0.0)} | {'tokens': real_tokens(batch)}
    return loss, (metrics, None if memory is None else trunk.cache)

  return loss_and_metrics


def _average(average: Any, trained: Any, largest_decay: float, step: Array) -> Any:
  """The moving average after an update; its first steps count for more.

  Otherwise little of where a short run began would be forgotten.
  """
  decay = jnp.minimum(largest_decay, (1.0 + step) / (10.0 + step))
  return optax.incremental_update(trained, average, 1.0 - decay)


def _accumulate(gradient: Callable, rows: Any, parts: int) -> tuple[Any, Any]:
  """Calls `gradient(part, number)` on `parts` interleaved parts of a pytree of rows.

  Returns (sums of gradients and metrics, memory of all rows), of what it returns for a part:
  (gradients, (metrics, memory)).
  """

  def summed(part, number):
    grads, (metrics, memory) = gradient(part, number)
    return (grads, metrics), memory

  if parts == 1:
    return summed(rows, 0)
  # Interleaving (row r goes to part r % parts) keeps every row on the device that has it.
  split = lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
  joined = lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
  rows = jax.tree.map(split, rows)
  first = jax.tree.map(lambda x: x[0], rows)
  shapes = jax.eval_shape(lambda part: summed(part, 0)[0], first)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def body(sums, part):
    new, memory = summed(*part)
    return jax.tree.map(jnp.add, sums, new), memory

  sums, memory = jax.lax.scan(body, zeros, (rows, jnp.arange(parts)))
  return sums, jax.tree.map(joined, memory)


def make_eval_step(
  model: Model, objective: Objective
) -> Callable[[Any, Batch, Any], tuple[Metrics, Metrics, Any]]:
  """Returns (params, batch, memory) -> (Means by name, predictions by name or {}, memory).

  Without dropout. The memory, of a trunk that has one, is that of the rows before; else None.
  """

  def step(params: Any, batch: Batch, memory: Any) -> tuple[Metrics, Metrics, Any]:
    outputs, trunk = model.apply({'params': params}, batch, **_recurrent(memory))
    _, metrics = objective.losses(outputs, batch)
    predictions = objective.predict(outputs, batch)
    return metrics, predictions, None if memory is None else trunk.cache

  return step


def _recurrent(memory: Any) -> dict[str, Any]:
  """The model's argument for a memory; a trunk without one need not know it."""
  return {} if memory is None else {'cache': memory}


def real_tokens(batch: Batch) -> Array:
  """Number of tokens that are not padding, over all streams."""
  return sum((batch[key] != 0).sum() for key in batch if key.endswith('segment_ids'))
