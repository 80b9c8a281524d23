"""Bad steps: how a step judges itself, and what is left of one that is bad.

A step is bad if its loss or the norm of its gradient is not finite, or is a spike against a running
mean (as in the skipped steps of OLMo 2, OLMo team 2024, which count standard deviations over the
last 128 steps; here both are exponential, so that they take two numbers). The judgement is part of
the compiled step and of its state, so it is the same on any mesh, and after any resume.
"""

import flax.struct
import jax
import jax.numpy as jnp

from flaxlm.config.safety import GuardConfig
from flaxlm.types import GUARD, MEMORY, Array, TrainState

FINE, SPIKE, NOT_FINITE = 0, 1, 2


@flax.struct.dataclass
class Guard:
  """What is known of the steps so far; `mean` and `variance` [2] are of loss and gradient norm.

  good: steps that they run over; skipped: bad steps; in_a_row: those since the last good one.
  """

  mean: Array
  variance: Array
  good: Array
  skipped: Array
  in_a_row: Array


def fresh(skipped: int = 0) -> Guard:
  """Before the first step, or of a run that was not guarded before; it has skipped so many."""
  # Each an array of its own: the step uses them up.
  numbers = lambda: jnp.zeros(2, jnp.float32)
  count = lambda number: jnp.full((), number, jnp.int32)
  return Guard(numbers(), numbers(), count(0), count(skipped), count(0))


def without_memory(state: TrainState) -> TrainState:
  """The state with an empty memory, where it has one: the next rows do not follow those before."""
  if MEMORY not in state.extras:
    return state
  empty = jax.tree.map(jnp.zeros_like, state.extras[MEMORY])
  return state.replace(extras={**state.extras, MEMORY: empty})


def settle(
  config: GuardConfig, old: TrainState, new: TrainState, loss: Array, grad_norm: Array
) -> tuple[TrainState, dict[str, Array]]:
  """The state after a step: `new`, or `old` in all but the number of the step if it was bad.

  A bad step leaves parameters, the whole of the optimizer's state and averages bit for bit. So it
  does not count for the optimizer: bias corrections and the schedule wait. A memory is emptied: the
  rows of the step that it lacks may have ended its texts.

  Args:
    config: of a guard that is on.
    old: before the step; its extras hold a Guard.
    new: after it.
    loss: float32 scalar, of the whole batch; grad_norm: before clipping.

  Returns:
    (state, metrics): `verdict` is FINE, SPIKE or NOT_FINITE; `skipped` counts bad steps, this one
    included, `in_a_row` those since the last good one.
  """
  before = old.extras[GUARD]
  seen = jnp.stack([loss, grad_norm]).astype(jnp.float32)
  verdict = jnp.where(jnp.isfinite(seen).all(), FINE, NOT_FINITE)
  if config.spike_sigmas:
    limit = before.mean + config.spike_sigmas * jnp.sqrt(before.variance)
    spike = (before.good >= config.spike_window) & (seen > limit).any()
    verdict = jnp.where((verdict == FINE) & spike, SPIKE, verdict)
  fine = verdict == FINE
  good = Guard(
    *_moved(config.spike_window, before, seen),
    good=before.good + 1,
    skipped=before.skipped,
    in_a_row=jnp.zeros_like(before.in_a_row),
  )
  bad = before.replace(skipped=before.skipped + 1, in_a_row=before.in_a_row + 1)
  taken = new.replace(extras={**new.extras, GUARD: good})
  kept = without_memory(old)
  left = kept.replace(step=new.step, extras={**kept.extras, GUARD: bad})
  state = jax.tree.map(lambda x, y: jnp.where(fine, x, y), taken, left)
  after = state.extras[GUARD]
  return state, {'verdict': verdict, 'skipped': after.skipped, 'in_a_row': after.in_a_row}


def _moved(window: int, guard: Guard, seen: Array) -> tuple[Array, Array]:
  """Mean and variance with one more value: of all values up to `window`, exponential from there.

  Finch 2009, "Incremental calculation of weighted mean and variance", section 9.
  """
  share = 1.0 / jnp.minimum(guard.good + 1, window).astype(jnp.float32)
  away = seen - guard.mean
  mean = guard.mean + share * away
  return mean, (1.0 - share) * (guard.variance + share * away**2)
