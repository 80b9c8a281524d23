"""Resume is the run that was left alone; stopping, failing and going on do what they say."""

import json
import os
import random
import re
import signal
import threading
import time

import jax
import linear_experiment as linear
import pytest
from conftest import assert_same_tree
from linear_experiment import exact, fit, stop_at
from processes import finish, start

from flaxlm.errors import UserError
from flaxlm.evaluation import evaluator
from flaxlm.training import checkpoint, loop, validation
from flaxlm.training.interrupt import Interrupted, Interrupts
from flaxlm.training.writers import read_metrics


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run that was left alone: (workdir, final state)."""
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, fit(workdir)


def test_a_run_leaves_what_it_promises(whole):
  workdir, state = whole
  lines = read_metrics(workdir)
  train = [line for line in lines if line['split'] == 'train']
  assert [line['step'] for line in train] == list(range(1, 21))
  assert {'loss', 'learning_rate', 'grad_norm', 'tokens_per_second', 'packing'} <= set(train[-1])
  assert train[-1]['loss'] < train[0]['loss']
  schedule = linear.Experiment(linear.make_config()).schedule
  rates = [float(schedule(i)) for i in range(20)]  # Of the update that a line is of.
  assert len(set(rates)) > 1 and [line['learning_rate'] for line in train] == rates
  assert [(line['step'], line['split']) for line in lines if line['split'] != 'train'] == [
    (10, 'validation'), (10, 'other'), (20, 'validation'), (20, 'other'),
  ]  # fmt: skip
  assert json.loads((workdir / 'config.json').read_text())['total_steps'] == 20
  assert json.loads((workdir / 'overrides.json').read_text()) == [['total_steps', '20']]
  assert (workdir / 'tokenizer' / 'tokenizer.json').exists()
  assert int(state.step) == 20 and checkpoint.steps_in(workdir / 'checkpoints')[-1] == 20


def test_the_loss_of_a_line_is_that_of_its_own_batch(whole, tmp_path):
  del tmp_path
  experiment = linear.Experiment(linear.make_config())
  state = experiment.init_state()
  losses = []
  for step in range(3):
    state, metrics = experiment.train_step(state, experiment.put(experiment.train_data.batch(step)))
    losses.append(metrics['loss'].value())
  train = [line['loss'] for line in read_metrics(whole[0]) if line['split'] == 'train']
  assert train[:3] == losses


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('step', [7, 10])
def test_stopped_and_gone_on_equals_left_alone(whole, tmp_path, capsys, signum, step):
  with pytest.raises(Interrupted) as stopped:
    fit(tmp_path, stop_at(step, signum))
  assert stopped.value.code == 128 + signum
  saved = checkpoint.steps_in(tmp_path / 'checkpoints')[-1]
  assert saved in (step, step + 1)
  assert f'at step {saved}; the same command goes on' in capsys.readouterr().err
  data = linear.Data()
  state = fit(tmp_path, data)
  assert data.seen[0] == saved
  assert_same_tree(state, whole[1])
  assert exact(tmp_path) == exact(whole[0])


def test_a_signal_before_training_saves_nothing_and_ends(tmp_path, capsys):
  with pytest.raises(Interrupted), Interrupts():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
  assert 'nothing to save' in capsys.readouterr().err
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def stop_during_evaluation(workdir, **changes):
  """Trains until SIGTERM comes in the evaluation of the second set, which is then done again."""
  experiment = linear.Experiment(linear.make_config(**changes))
  batches = experiment.eval_data['other'].batches

  def interrupted(limit=None):
    for batch in batches(limit):
      if experiment.train_data.seen:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
      yield batch

  experiment.eval_data['other'].batches = interrupted
  with pytest.raises(Interrupted), Interrupts() as interrupts:
    loop.fit(experiment, workdir, (), interrupts)


def test_a_stop_during_an_evaluation_saves_and_evaluates_again(whole, tmp_path):
  stop_during_evaluation(tmp_path)
  assert checkpoint.steps_in(tmp_path / 'checkpoints')[-1] == 10
  assert_same_tree(fit(tmp_path), whole[1])
  assert exact(tmp_path) == exact(whole[0])


def test_the_best_is_known_though_its_evaluation_was_stopped(tmp_path):
  changes = {'checkpoint__best_mode': 'max', 'checkpoint__keep_last': 1}  # The first is the best.
  stop_during_evaluation(tmp_path, **changes)
  fit(tmp_path, **changes)
  assert checkpoint.steps_in(tmp_path / 'checkpoints') == [10, 20]
  assert checkpoint.find(tmp_path / 'checkpoints', 'best') == [10]


def test_patience_goes_on_after_a_stop_between_two_sets(tmp_path):
  changes = early(checkpoint__best_metric='other/loss')
  whole = fit(tmp_path / 'whole', **changes)
  stop_during_evaluation(tmp_path / 'cut', **changes)
  assert_same_tree(fit(tmp_path / 'cut', **changes), whole)
  assert exact(tmp_path / 'cut') == exact(tmp_path / 'whole')


def kill_and_repeat(workdir, kills, seed):
  """Runs the script until it ends, killing it at random moments, as many times as asked for.

  No life goes further than its share of the first two thirds of the steps, however slowly the saves
  or this process run: else the last lives would find nothing to do.
  """
  rng = random.Random(seed)
  for done in range(kills):
    process = start(linear.__file__, workdir)
    before = len(read_metrics(workdir))
    while len(read_metrics(workdir)) in (0, before) and process.poll() is None:
      time.sleep(0.01)
    until, furthest = time.monotonic() + rng.random() * 0.7, 40 * (done + 1) / kills
    while time.monotonic() < until and read_metrics(workdir)[-1]['step'] < furthest:
      time.sleep(0.01)
    process.kill()
    finish(process, -signal.SIGKILL)
  finish(start(linear.__file__, workdir))


def check_killed(tmp_path, kills):
  kill_and_repeat(tmp_path / 'killed', kills, seed=kills)
  kill_and_repeat(tmp_path / 'whole', 0, seed=0)
  assert exact(tmp_path / 'killed') == exact(tmp_path / 'whole')
  digests = [
    checkpoint.read_meta(tmp_path / name / 'checkpoints', 60)['digest']
    for name in ('killed', 'whole')
  ]
  assert digests[0] == digests[1]


@pytest.mark.full
def test_killed_at_random_moments_equals_left_alone(tmp_path):
  check_killed(tmp_path, 2)


@pytest.mark.full
def test_killed_ten_times_equals_left_alone(tmp_path):
  check_killed(tmp_path, 10)


def test_a_damaged_checkpoint_costs_steps_and_not_exactness(whole, tmp_path, capsys):
  with pytest.raises(Interrupted):
    fit(tmp_path, stop_at(13))
  latest = checkpoint.steps_in(tmp_path / 'checkpoints')[-1]
  (tmp_path / 'checkpoints' / str(latest) / 'meta' / 'metadata').write_text('{')
  assert_same_tree(fit(tmp_path), whole[1])
  assert exact(tmp_path) == exact(whole[0])
  assert 'DAMAGED' in capsys.readouterr().err
  assert (tmp_path / 'checkpoints-damaged' / str(latest)).exists()


def test_metrics_of_a_run_killed_before_its_first_checkpoint_are_dropped(whole, tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "split": "train", "loss": 5}\n{"step": 2,')
  fit(tmp_path)
  assert exact(tmp_path) == exact(whole[0])


def test_nan_names_step_leaf_and_batch_and_nothing_after_it_is_saved(tmp_path):
  with pytest.raises(UserError, match='step 10: loss nan') as failed:
    fit(tmp_path, linear.Data(poison=9))
  message = str(failed.value)
  assert 'gradient of head/kernel and 2 more of 3 leaves' in message
  assert 'rows of step 9' in message
  assert checkpoint.steps_in(tmp_path / 'checkpoints') == [5]
  lines = read_metrics(tmp_path)
  assert max(line['step'] for line in lines) == 9


@pytest.mark.parametrize(
  'changes,key',
  [
    ({'seed': 1}, 'config.seed'),
    ({'optimizer__learning_rate': 0.1}, 'config.optimizer.learning_rate'),
    ({'model__emb_dim': 128}, 'config.model.emb_dim'),
    ({'data__train': 'x.txt'}, 'config.data.train'),
    ({'global_batch_size': 16}, 'config.global_batch_size'),
  ],
)
def test_a_resume_cannot_change_the_run(whole, changes, key):
  with pytest.raises(UserError, match=key):
    fit(whole[0], **changes)


def test_another_tokenizer_cannot_go_on(whole):
  experiment = linear.Experiment(linear.make_config())
  experiment.tokenizer = linear.Tokenizer('other')
  with pytest.raises(UserError, match='not the tokenizer'):
    loop.fit(experiment, whole[0])


def test_the_tokenizer_of_checkpoints_is_not_written_again(tmp_path):
  """A kill in the middle of it would leave checkpoints that nothing opens."""
  with pytest.raises(Interrupted):
    fit(tmp_path, stop_at(7))
  file = tmp_path / 'tokenizer' / 'tokenizer.json'
  before = file.stat().st_mtime_ns
  fit(tmp_path)
  assert file.stat().st_mtime_ns == before


def test_a_resume_on_other_data_is_an_error(tmp_path):
  with pytest.raises(Interrupted):
    fit(tmp_path, stop_at(7))
  with pytest.raises(UserError, match='config.data.train: the training data are no longer'):
    fit(tmp_path, linear.Data(seed=5))
  # A change that the next batch does not show.
  data = linear.Data()
  data.corpus = 'other rows'
  with pytest.raises(UserError, match='config.data.train: the training data are no longer'):
    fit(tmp_path, data)


def test_a_resume_on_another_held_out_part_is_an_error(tmp_path, monkeypatch):
  with pytest.raises(Interrupted):
    fit(tmp_path, stop_at(7))
  experiment = linear.Experiment(linear.make_config())
  experiment.held_out = {'validation': 'other text'}
  with pytest.raises(UserError, match="what is held out of it as 'validation' is not what it was"):
    loop.fit(experiment, tmp_path)


def test_a_test_set_that_is_missing_is_an_error_before_the_first_step(tmp_path):
  with pytest.raises(UserError, match='config.data.test: .*nosuch.tsv does not exist'):
    fit(tmp_path, data__test=str(tmp_path / 'nosuch.tsv'))
  assert not (tmp_path / 'checkpoints').exists()


def test_a_resume_may_change_how_and_how_long_and_warns_of_the_schedule(tmp_path, capsys):
  fit(tmp_path)
  state = fit(
    tmp_path, total_steps=24, num_microbatches=2, evaluation__every_steps=12,
    checkpoint__keep_last=1, logging__every_steps=4, data__prefetch=0,
  )  # fmt: skip
  assert int(state.step) == 24
  assert 'cosine schedule was made for 20 steps' in capsys.readouterr().err


def test_a_complete_run_does_nothing_more(whole, capsys):
  before = (whole[0] / 'metrics.jsonl').read_text()
  data = linear.Data()
  assert_same_tree(fit(whole[0], data), whole[1])
  assert not data.seen
  assert (whole[0] / 'metrics.jsonl').read_text() == before
  said = capsys.readouterr().err
  assert ' compile ' not in said and ' train ' not in said


def test_the_best_checkpoint_is_kept_though_it_is_between_intervals(tmp_path):
  fit(
    tmp_path, evaluation__every_steps=1, checkpoint__every_steps=20, checkpoint__keep_last=1,
    checkpoint__best_mode='max', total_steps=6,
  )  # fmt: skip
  # Losses fall, so that the worst, which was asked for, is the first.
  assert checkpoint.steps_in(tmp_path / 'checkpoints') == [1, 6]


def test_the_checkpoints_kept_for_ever_are_made_though_they_are_between_intervals(tmp_path):
  fit(
    tmp_path, checkpoint__every_steps=4, checkpoint__keep_every_steps=6, checkpoint__keep_last=1,
    evaluation__every_steps=0, total_steps=13,
  )  # fmt: skip
  assert checkpoint.steps_in(tmp_path / 'checkpoints') == [6, 12, 13]


def early(data=None, **changes):
  """Losses fall, so that the metric that should rise is best at the first evaluation."""
  return {
    'total_steps': 20, 'evaluation__every_steps': 2, 'checkpoint__every_steps': 3,
    'checkpoint__best_mode': 'max', 'evaluation__patience': 3, **changes,
  }  # fmt: skip


def test_no_change_is_no_better(tmp_path, monkeypatch):
  same = lambda *_: evaluator.Evaluation({'loss': 1.0}, {})
  monkeypatch.setattr(validation, 'evaluate', same)
  assert int(fit(tmp_path, **early()).step) == 8


def test_patience_ends_a_run_that_gets_no_better(tmp_path, capsys):
  state = fit(tmp_path, **early())
  assert int(state.step) == 8  # Evaluated at 2, 4, 6, 8: three in a row were worse than the first.
  assert checkpoint.steps_in(tmp_path / 'checkpoints') == [2, 6, 8]
  assert 'stopping early: no better loss in 3 evaluations' in capsys.readouterr().err
  data = linear.Data()
  assert int(fit(tmp_path, data, **early()).step) == 8 and not data.seen
  # More patience is no other run.
  assert int(fit(tmp_path, **early(evaluation__patience=5)).step) == 12


def test_patience_is_kept_over_a_stop(tmp_path):
  whole = fit(tmp_path / 'whole', **early())
  with pytest.raises(Interrupted):
    fit(tmp_path / 'cut', stop_at(5), **early())
  assert_same_tree(fit(tmp_path / 'cut', **early()), whole)
  assert exact(tmp_path / 'cut') == exact(tmp_path / 'whole')


def test_a_resume_does_not_forget_its_last_evaluation(tmp_path):
  """It ended right after the evaluation that was the best so far, and is given more steps."""
  better = {'evaluation__patience': 1, 'checkpoint__best_mode': 'auto'}
  fit(tmp_path, **early(total_steps=4, **better))
  assert int(fit(tmp_path, **early(total_steps=8, **better)).step) == 8


def test_a_run_that_gets_better_is_not_stopped(tmp_path):
  assert int(fit(tmp_path, **early(checkpoint__best_mode='auto')).step) == 20


def test_an_unknown_best_metric_is_an_error_before_the_first_step(tmp_path):
  data = linear.Data()
  with pytest.raises(UserError, match="best_metric: no metric 'acuracy'"):
    fit(tmp_path, data, checkpoint__best_metric='acuracy')
  assert not data.seen


def test_a_best_metric_may_need_more_than_a_batch(tmp_path, monkeypatch):
  limits = []

  def evaluate(experiment, weights, name, batches, *_):
    limits.append(batches)
    metrics = {'loss': 1.0} if batches == 1 else {'loss': 1.0, 'f1': 0.5}
    return evaluator.Evaluation(metrics, {})

  monkeypatch.setattr(validation, 'evaluate', evaluate)
  fit(tmp_path, checkpoint__best_metric='f1')
  assert limits[:3] == [1, 1, 16]  # Of two sets.


def test_a_profile_of_steps_that_never_come_is_an_error(tmp_path):
  with pytest.raises(UserError, match='config.profile.steps: the run ends before step 9, after 5'):
    fit(tmp_path, total_steps=5, profile__steps=(9, 12))


def test_a_profile_is_left_of_the_steps_asked_for(tmp_path, monkeypatch):
  fit(tmp_path / 'left', total_steps=5, profile__steps=(2, 3))
  assert list((tmp_path / 'left' / 'profile').rglob('*.pb'))
  experiment = linear.Experiment(linear.make_config(total_steps=6, profile__steps=(2, 4)))
  step, events = experiment.train_step, []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda _: events.append('begin'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: events.append('end'))

  def noted(state, batch):
    events.append(int(state.step) + 1)
    return step(state, batch)

  experiment.__dict__['train_step'] = noted
  loop.fit(experiment, tmp_path / 'noted')
  assert events == [1, 'begin', 2, 3, 4, 'end', 5, 6]


def test_a_profile_after_a_resume(tmp_path, capsys):
  fit(tmp_path, total_steps=5)
  fit(tmp_path, total_steps=6, profile__steps=(2, 3))
  assert 'there will be no trace of steps 2 to 3' in capsys.readouterr().err
  fit(tmp_path, total_steps=8, profile__steps=(5, 8))  # The run goes on with step 7.
  assert list((tmp_path / 'profile').rglob('*.pb'))


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch, capsys):
  """The write of step 5 ends only after four more steps were begun."""
  reached, waited, rename = threading.Event(), [], os.rename

  def slow(source, target):
    if os.path.basename(target) == '5':
      waited.append(reached.wait(60))
    rename(source, target)

  monkeypatch.setattr(os, 'rename', slow)
  fit(tmp_path, linear.Data(on_batch=lambda number: number == 9 and reached.set()), total_steps=12)
  assert waited == [True]
  said = capsys.readouterr().err
  assert re.findall(r'checkpoint (\d+): held up training for \d+\.\d\d s', said) == ['5', '10']


def test_saving_is_silent(tmp_path, capfd):
  """No warnings or log lines of libraries reach the terminal."""
  fit(tmp_path, total_steps=6)
  fit(tmp_path, total_steps=8)
  said = capfd.readouterr()
  assert not said.out
  noise = [line for line in said.err.splitlines() if 'WARNING' in line or 'Warning' in line]
  assert not noise
