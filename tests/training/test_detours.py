"""Runs with bad steps: they end, skip or go back, and count it, also over a stop in between."""

import jax
import linear_experiment as linear
import numpy as np
import pytest
from conftest import assert_same_tree
from linear_experiment import fit, stop_at

from flaxlm.errors import UserError
from flaxlm.training import checkpoint, guard, loop
from flaxlm.training.detours import BadStep, Detours, RollBack
from flaxlm.training.interrupt import Interrupted
from flaxlm.training.writers import read_metrics
from flaxlm.types import GUARD

# Losses of this little problem scatter; so does what a spike is.
SKIP = {'guard__policy': 'skip', 'guard__spike_sigmas': 4.0, 'guard__spike_window': 5}
BACK = SKIP | {'guard__policy': 'rollback'}
SHORT = {'total_steps': 18, 'optimizer__schedule': 'constant', 'evaluation__every_steps': 0}
# A batch that gives NaN, and one whose gradient is a hundred million times what it should be.
BAD = {8: np.nan, 12: 1e4}


def train_lines(workdir):
  return [line for line in read_metrics(workdir) if line['split'] == 'train']


def keys(workdir, *names):
  return [[line[name] for name in names] for line in train_lines(workdir)]


def same_training(a, b):
  assert_same_tree((a.params, a.opt_state), (b.params, b.opt_state))


def poisoned(on_batch=None):
  return linear.Data(poison=BAD, on_batch=on_batch)


def test_skipped_is_as_if_the_batches_had_not_been_there(tmp_path, capsys):
  state = fit(tmp_path / 'skip', poisoned(), **SKIP, **SHORT)
  straight = fit(
    tmp_path / 'without', linear.Data(missing=BAD), **SKIP, **SHORT | {'total_steps': 16}
  )
  same_training(state, straight)
  assert int(state.step) == 18 and int(state.extras[GUARD].skipped) == 2
  said = capsys.readouterr().err
  assert 'step 9: loss nan, gradient norm nan; not finite: the gradient of head/kernel' in said
  assert ', a spike; batch: rows of step 12; skipped (2 so far in this run)' in said
  lines = train_lines(tmp_path / 'skip')
  assert [line['skipped'] for line in lines] == [0] * 8 + [1] * 4 + [2] * 6
  assert lines[8]['loss'] is None
  # The schedule waits, and the log tells the rate that was used.
  rates = [line['learning_rate'] for line in train_lines(tmp_path / 'without')]
  kept = [line['learning_rate'] for line in lines if line['step'] not in (9, 13)]
  assert kept == rates


def test_a_run_that_goes_back_forgets_the_rows_before(tmp_path, monkeypatch):
  """Those that it passes over are between them and the next."""
  steps = []
  forget = lambda state: steps.append(int(state.step)) or guard.without_memory(state)
  monkeypatch.setattr(loop, 'without_memory', forget)
  fit(tmp_path, linear.Data(poison={8: np.nan}), guard__policy='rollback', **SHORT)
  assert steps == [5]


def test_the_schedule_waits_for_a_skipped_step(tmp_path):
  cosine = SHORT | {'optimizer__schedule': 'cosine', 'optimizer__warmup_steps': 12}
  fit(tmp_path, poisoned(), **SKIP, **cosine)
  rates = [line['learning_rate'] for line in train_lines(tmp_path)]
  assert (
    rates[8] == rates[9] and rates[12] == rates[13]
  )  # The rate of the update that was not made.
  assert len(set(rates)) == 16


@pytest.mark.parametrize(
  'policy, step',
  [(SKIP, 12), (BACK, 14), *(pytest.param(SKIP, n, marks=pytest.mark.full) for n in (9, 13))],
)
def test_stopped_and_gone_on_equals_left_alone(tmp_path, policy, step):
  whole = fit(tmp_path / 'whole', poisoned(), **policy, **SHORT)
  state = stopped_and_gone_on(tmp_path / 'cut', policy, step)
  assert_same_tree(state, whole)
  names = 'step', 'loss', 'learning_rate', 'skipped', 'rollbacks'
  assert keys(tmp_path / 'cut', *names) == keys(tmp_path / 'whole', *names)


@pytest.mark.full
@pytest.mark.parametrize('step, passed', [(11, 5), (14, 8)])
def test_rollbacks_are_counted_over_a_stop(tmp_path, step, passed):
  """A stop at batch 11 leaves a checkpoint of step 7 or 8: nearer to batch 12 than that of 5."""
  stopped_and_gone_on(tmp_path, BACK, step)
  detours = Detours.of(checkpoint.read_meta(tmp_path / 'checkpoints', 18))
  assert (detours.rollbacks, detours.skipped) == (2, 0)
  assert passed <= detours.data_offset <= 8
  assert train_lines(tmp_path)[-1]['rollbacks'] == 2


def stopped_and_gone_on(workdir, policy, step):
  with pytest.raises(Interrupted):
    fit(workdir, poisoned(stop_at(step).on_batch), **policy, **SHORT)
  return fit(workdir, poisoned(), **policy, **SHORT)


def test_a_profile_that_a_rollback_cuts_short_begins_again(tmp_path):
  fit(tmp_path, poisoned(), **BACK, **SHORT, profile__steps=(7, 14))
  assert list((tmp_path / 'profile').rglob('*.pb'))


def test_rolled_back_goes_on_past_the_batch(tmp_path, capsys):
  """Checkpoints are at 5 and 10. Batch 8 spoils step 9: from 5 on come batches 9, 10, 11; batch 12
  spoils step 9 again: from 5 on come batches 13 and later."""
  data = poisoned()
  state = fit(tmp_path / 'back', data, **BACK, **SHORT)
  missing = range(5, 13)
  straight = fit(tmp_path / 'without', linear.Data(missing=missing), **BACK, **SHORT)
  same_training(state, straight)
  assert keys(tmp_path / 'back', 'step', 'loss') == keys(tmp_path / 'without', 'step', 'loss')
  assert keys(tmp_path / 'back', 'step', 'rollbacks') == [[i, 0] for i in range(1, 6)] + [
    [i, 2] for i in range(6, 19)
  ]
  meta = checkpoint.read_meta(tmp_path / 'back' / 'checkpoints', 18)
  assert Detours.of(meta) == Detours(data_offset=8, rollbacks=2, skipped=0)
  said = capsys.readouterr().err
  assert 'going back to the last checkpoint, and on past this batch' in said
  assert data.seen[-1] == 18 + 8 - 1


def test_a_rollback_before_the_first_checkpoint_goes_back_to_the_start(tmp_path):
  data = linear.Data(poison={2: np.inf})
  state = fit(tmp_path / 'a', data, **BACK, **SHORT)
  same_training(state, fit(tmp_path / 'b', linear.Data(missing=range(3)), **BACK, **SHORT))


def test_rollbacks_and_skips_are_bounded_and_the_error_names_the_field(tmp_path):
  data = linear.Data(poison=dict.fromkeys(range(7, 99), np.nan))
  with pytest.raises(
    BadStep, match=r'config.guard.max_rollbacks: rolled back 2 times; step \d+: l'
  ):
    fit(tmp_path / 'back', data, **BACK, **SHORT, guard__max_rollbacks=2)
  with pytest.raises(
    BadStep, match='config.guard.max_skipped: 3 bad steps in a row; step 10: loss'
  ):
    fit(tmp_path / 'skip', data, **SKIP, **SHORT, guard__max_skipped=2)
  # As many more, with another bound: it may change.
  with pytest.raises(
    BadStep, match='config.guard.max_skipped: 5 bad steps in a row; step 12: loss'
  ):
    fit(tmp_path / 'skip', data, **SKIP, **SHORT, guard__max_skipped=4)


def test_a_spike_is_an_error_where_nothing_else_is_asked_for(tmp_path):
  with pytest.raises(UserError, match='step 13: loss .*, a spike; batch: rows of step 12; nothing'):
    fit(tmp_path, linear.Data(poison={12: 1e4}), **SKIP | {'guard__policy': 'error'}, **SHORT)
  assert checkpoint.steps_in(tmp_path / 'checkpoints') == [5, 10]


@pytest.mark.parametrize('policy', ['skip', 'rollback'])
def test_a_run_that_has_failed_goes_on_with_a_guard_and_later_without(tmp_path, policy):
  data = linear.Data(poison={8: np.nan})
  with pytest.raises(BadStep, match='step 9: loss nan'):
    fit(tmp_path, data, **SHORT)
  guarded = SHORT | {'guard__policy': policy}
  with pytest.raises(Interrupted):
    stop = linear.Data(poison={8: np.nan}, on_batch=stop_at(13).on_batch)
    fit(tmp_path, stop, **guarded)
  assert len(train_lines(tmp_path)) in (13, 14, 9, 10)
  state = fit(tmp_path, data, **SHORT)
  assert GUARD not in state.extras and int(state.step) == 18
  last = Detours.of(checkpoint.read_meta(tmp_path / 'checkpoints', 18))
  assert last == (Detours(4, 1, 0) if policy == 'rollback' else Detours(0, 0, 1))
  missing = [8] if policy == 'skip' else range(5, 9)
  steps = 17 if policy == 'skip' else 18
  straight = fit(tmp_path / 'b', linear.Data(missing=missing), **SHORT | {'total_steps': steps})
  # Two programs, with a guard and without: their sums may be in another order.
  for x, y in zip(*(jax.tree.leaves(run.params) for run in (state, straight)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_where_a_rollback_goes_on():
  """At step 9 (batch 8 + 2), back to step 5: the next batch is number 11."""
  assert RollBack(9, Detours(2, 1, 3)).back_at(5) == Detours(6, 2, 3)
