"""A step that judges itself: what is bad, what a bad step leaves, and what is counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from flaxlm.config.safety import GuardConfig
from flaxlm.paths import leaf_paths
from flaxlm.training import guard
from flaxlm.types import EMA, GUARD, MEMORY, TrainState

CONFIG = GuardConfig(policy='skip', spike_sigmas=3.0, spike_window=5)


@functools.partial(jax.jit, static_argnums=0)
def step(config, state, loss, norm):
  """An Adam step whose loss and gradient norm are given; its gradient is NaN where the loss is."""
  optimizer = optax.adam(0.1)
  grads = jax.tree.map(lambda x: jnp.sin(x) + loss * 0, state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state)
  params = optax.apply_updates(state.params, updates)
  return guard.settle(
    config, state, TrainState(state.step + 1, params, opt_state, state.extras), loss, norm
  )


def run(config, losses, norms=None):
  """Every state, from the first on, and the verdicts."""
  params = {'a': jnp.arange(3.0), 'b': jnp.ones((2, 2))}
  state = TrainState(jnp.int32(0), params, optax.adam(0.1).init(params), {GUARD: guard.fresh()})
  states, verdicts = [state], []
  for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
    state, metrics = step(config, state, jnp.float32(loss), jnp.float32(norm))
    states.append(state)
    verdicts.append(int(metrics['verdict']))
  return states, verdicts


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def held(state):
  return state.params, state.opt_state


@pytest.mark.parametrize('loss', [2.0, np.nan])
def test_a_bad_step_empties_the_memory(loss):
  """That of the rows before it: the texts that go on after it may have begun in its own."""
  memory = {'hidden': jnp.ones((2, 3)), 'is_open': jnp.ones((2, 1), bool)}
  extras = {GUARD: guard.fresh(), MEMORY: memory}
  old = TrainState(jnp.int32(0), {'a': jnp.ones(2)}, (), extras)
  new = old.replace(step=jnp.int32(1), extras=extras | {MEMORY: jax.tree.map(jnp.copy, memory)})
  found, _ = guard.settle(CONFIG, old, new, jnp.float32(loss), jnp.float32(1.0))
  kept = [bool(leaf.any()) for leaf in jax.tree.leaves(found.extras[MEMORY])]
  assert kept == [np.isfinite(loss)] * 2
  assert [leaf.dtype for leaf in jax.tree.leaves(found.extras[MEMORY])] == [jnp.float32, bool]


LOSSES = [2.0, 2.2, 1.9, 2.1, 2.0, 1.8]


@pytest.mark.parametrize('bad', ['loss', 'norm'])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 9.0])
def test_a_bad_step_leaves_parameters_and_moments_bit_for_bit(bad, value):
  losses, norms = [*LOSSES, 2.0, 2.1], [1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, 1.0]
  (losses if bad == 'loss' else norms)[6] = value
  states, verdicts = run(CONFIG, losses, norms)
  spike = np.isfinite(value)
  assert verdicts == [0] * 6 + [guard.SPIKE if spike else guard.NOT_FINITE, 0]
  assert equal(held(states[7]), held(states[6]))
  assert [int(state.step) for state in states] == list(range(9))
  # The step after it is the one that would have come in its place.
  without = [values[:6] + values[7:] for values in (losses, norms)]
  straight, _ = run(CONFIG, *without)
  assert equal(held(states[8]), held(straight[7]))
  found = [states[8].extras[GUARD], straight[7].extras[GUARD]]
  assert equal((found[0].mean, found[0].variance, found[0].good),
               (found[1].mean, found[1].variance, found[1].good))  # fmt: skip
  assert [int(g.skipped) for g in found] == [1, 0]


def test_good_steps_are_left_alone():
  states, verdicts = run(CONFIG, LOSSES)
  assert verdicts == [0] * 6
  assert not any(equal(a.params, b.params) for a, b in zip(states, states[1:], strict=False))


def test_bad_steps_in_a_row_are_counted_until_a_good_one():
  states, _ = run(CONFIG, [2.0, np.nan, np.nan, 2.0, np.nan])
  assert [int(s.extras[GUARD].in_a_row) for s in states] == [0, 0, 1, 2, 0, 1]
  assert [int(s.extras[GUARD].skipped) for s in states] == [0, 0, 1, 2, 2, 3]


def test_mean_and_variance_are_those_of_all_steps_up_to_the_window():
  rng = np.random.default_rng(0)
  losses, norms = rng.normal(3, 1, 8).tolist(), rng.normal(9, 2, 8).tolist()
  (*_, last), _ = run(GuardConfig(policy='skip', spike_window=8), losses, norms)
  found = last.extras[GUARD]
  np.testing.assert_allclose(found.mean, np.mean([losses, norms], axis=1), rtol=1e-5)
  np.testing.assert_allclose(found.variance, np.var([losses, norms], axis=1), rtol=1e-4)


def test_beyond_the_window_they_forget():
  losses = [50.0] * 5 + [1.0, 1.1] * 25
  (*_, last), verdicts = run(CONFIG, losses)
  weights = np.array([0.8**50 / 5] * 5 + [0.2 * 0.8**i for i in range(49, -1, -1)])
  mean = np.sum(weights * losses)
  variance = np.sum(weights * (losses - mean) ** 2)
  np.testing.assert_allclose(last.extras[GUARD].mean[0], mean, rtol=1e-4)
  np.testing.assert_allclose(last.extras[GUARD].variance[0], variance, rtol=1e-3)
  assert not any(verdicts)


def test_there_are_no_spikes_before_the_window_is_full_nor_where_they_are_not_asked_for():
  losses = [2.0, 2.2, 1.9, 2.1, 50.0]
  assert not any(run(CONFIG, losses)[1])
  assert not any(run(GuardConfig(policy='skip'), [*LOSSES, 1e6])[1])


def test_how_far_a_spike_is_away():
  """0.1 is the standard deviation of what came before; a fall is no spike."""
  before = [2.0, 2.2, 1.8, 2.0, 2.0, 2.0]
  (*_, last), _ = run(GuardConfig(policy='skip', spike_sigmas=3.0, spike_window=6), before)
  deviation = float(np.sqrt(last.extras[GUARD].variance[0]))
  for sigmas, away, verdict in (
    (3.0, 2.9, 0),
    (3.0, 3.1, guard.SPIKE),
    (3.0, -20, 0),
    (4.0, 3.1, 0),
  ):
    config = GuardConfig(policy='skip', spike_sigmas=sigmas, spike_window=6)
    _, verdicts = run(config, [*before, 2.0 + away * deviation])
    assert verdicts[-1] == verdict


@pytest.mark.parametrize(
  'place', ['nanogpt_char.py', pytest.param('xlnet.py:mini', marks=pytest.mark.full)]
)
def test_one_bad_row_of_one_micro_batch(place, tmp_path):
  """Averages stay, too; the memory, of rows before those that are passed over, is emptied."""
  changes = ('num_microbatches', '2'), ('guard.policy', 'skip'), ('optimizer.ema_decay', '0.9')
  experiment = tiny.experiment(place, tiny.write_corpus(tmp_path), changes)
  state = tiny.random_state(experiment)
  assert set(state.extras) == {EMA, GUARD} | ({MEMORY} if 'xlnet' in place else set())
  batches = [experiment.train_data.batch(number) for number in range(3)]
  batches[1]['target_weights'][3] *= np.nan
  seen = []
  for batch in batches:
    state, metrics = experiment.train_step(state, experiment.put(batch))
    seen.append((int(metrics['verdict']), int(metrics['skipped']), jax.device_get(state)))
  assert [found[:2] for found in seen] == [(0, 0), (guard.NOT_FINITE, 1), (0, 1)]
  before, bad, after = (leaf_paths(found[2]) for found in seen)
  counts = {'step', 'extras/guard/skipped', 'extras/guard/in_a_row'}
  memory = {path for path in bad if path.startswith(f'extras/{MEMORY}/')}
  assert {path for path in bad if not np.array_equal(bad[path], before[path])} == counts | memory
  assert not any(bad[path].any() for path in memory)
  assert all(np.isfinite(leaf).all() for leaf in after.values())
  path = next(path for path in after if path.startswith('params/'))
  assert not np.array_equal(after[path], bad[path])
