"""Exact sums over ragged batches, bits per byte, predictions in order, and eval.py's function."""

import dataclasses
import json
import math
import types

import linear_experiment as linear
import numpy as np
import pytest
import stubs

from flaxlm.config.data import DataConfig
from flaxlm.errors import UserError
from flaxlm.evaluation import evaluator
from flaxlm.tasks import base
from flaxlm.training import experiment as experiments
from flaxlm.training import loop
from flaxlm.types import Mean


class Ragged:
  """A set whose batches have 3, 1 and 2 real rows of 3."""

  num_bytes, batch_size = 40, 3
  losses = [[1.0, 2.0, 6.0], [4.0, 0.0, 0.0], [2.0, 8.0, 0.0]]
  weights = [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
  ids = [[4, 0, 5], [2, 0, 0], [1, 3, 0]]

  def __len__(self):
    return 3

  def share(self, batches):
    return [0, 0.75, 0.8, 1][batches]

  def batches(self, max_batches=None):
    for number in range(3 if max_batches is None else max_batches):
      yield {
        'loss': np.array(self.losses[number]),
        'weights': np.array(self.weights[number]),
        'ids': np.array(self.ids[number]),
      }


class Task(base.Task):
  def __init__(self):
    pass

  def parse(self, row, where, labelled=True):
    raise NotImplementedError

  texts = records = parse

  def metrics(self, predictions, examples):
    texts = [examples[i] for i in predictions['example_ids']]
    return {'in_order': float(texts == sorted(examples))}


class Experiment:
  def __init__(self, likelihood=True):
    self.objective = stubs.Objective(likelihood=likelihood, perplexity='loss' if likelihood else '')
    self.eval_data = {'validation': Ragged()}
    self.task, self.examples = Task(), {'validation': list('abcdef')}

  def put(self, batch):
    return batch

  def empty_memory(self, rows):
    return None

  def eval_step(self, params, batch, memory):
    loss = Mean(np.sum(batch['loss'] * batch['weights']), np.sum(batch['weights']))
    predictions = {
      'value': batch['loss'][:, None],
      'example_ids': batch['ids'][:, None],
      'weights': batch['weights'][:, None].astype(np.float32),
    }
    return {'loss': loss, 'absent': Mean(0.0, 0.0)}, predictions, memory


def test_a_ragged_last_batch_is_weighed_exactly():
  evaluation = evaluator.evaluate(Experiment(), None, 'validation')
  metrics = evaluation.metrics
  assert metrics['loss'] == 23 / 6  # and not the mean of the means of batches
  assert metrics['perplexity'] == math.exp(23 / 6)
  assert metrics['bits_per_byte'] == pytest.approx(23 / math.log(2) / 40, rel=1e-12)
  assert math.isnan(metrics['absent'])


def test_sums_over_batches_are_of_float64():
  experiment, totals = Experiment(likelihood=False), iter([2.0**24, 1.0, 1.0])
  experiment.eval_step = lambda params, batch, memory: (
    {'loss': Mean(np.float32(next(totals)), np.float32(1))}, {}, memory,
  )  # fmt: skip
  assert evaluator.evaluate(experiment, None, 'validation').metrics['loss'] == (2**24 + 2) / 3


def test_the_loss_is_the_sum_of_the_means_of_its_terms():
  experiment = Experiment(likelihood=False)
  experiment.objective.terms = ('a_loss', 'b_loss', 'empty_loss')

  def eval_step(params, batch, memory):
    real = batch['weights']
    a = Mean(np.sum(batch['loss'] * real), np.sum(real))
    return {'a_loss': a, 'b_loss': Mean(5.0, 2.0), 'empty_loss': Mean(0.0, 0.0)}, {}, memory

  experiment.eval_step = eval_step
  metrics = evaluator.evaluate(experiment, None, 'validation').metrics
  assert metrics['loss'] == 23 / 6 + 2.5 and metrics['a_loss'] == 23 / 6


def test_predictions_are_in_the_order_of_the_examples_without_padding():
  evaluation = evaluator.evaluate(Experiment(), None, 'validation')
  assert evaluation.predictions['example_ids'].tolist() == [0, 1, 2, 3, 4, 5]
  assert evaluation.predictions['value'].tolist() == [2, 2, 4, 8, 1, 6]
  assert evaluation.metrics['in_order'] == 1.0


def test_no_perplexity_where_the_loss_is_no_likelihood():
  metrics = evaluator.evaluate(Experiment(likelihood=False), None, 'validation').metrics
  assert not {'perplexity', 'bits_per_byte'} & set(metrics)


def test_the_first_batches_only():
  metrics = evaluator.evaluate(Experiment(), None, 'validation', max_batches=2).metrics
  assert metrics['loss'] == 13 / 4
  assert metrics['bits_per_byte'] == pytest.approx(13 / math.log(2) / (40 * 0.8), rel=1e-12)


def test_it_gives_up_when_asked():
  assert evaluator.evaluate(Experiment(), None, 'validation', should_stop=lambda: 15) is None


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  loop.fit(linear.Experiment(linear.make_config(total_steps=10)), workdir)
  return workdir


@pytest.fixture
def build(monkeypatch):
  """Stands in for flaxlm.training.experiment.build; records what it was called with."""
  calls = []

  def build(config, workdir, *, training):
    calls.append((config, workdir, training))
    return linear.Experiment(config)

  monkeypatch.setattr(experiments, 'build', build)
  return calls


def test_evaluate_workdir_repeats_the_evaluation_of_training(run, build):
  result = evaluator.evaluate_workdir(str(run), 'latest')
  assert result['checkpoint'] == 10 and build[0][2] is False
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  for name in ('validation', 'other'):
    (line,) = [line for line in lines if line['split'] == name]
    assert {k: v for k, v in line.items() if k not in ('step', 'split')} == result[name]
  assert json.loads((run / 'eval' / '10.json').read_text()) == result


def test_a_test_set_is_for_the_checkpoint_that_validation_chose(build, tmp_path):
  # Losses fall, so that by `max` the first checkpoint is the best.
  config = linear.make_config(
    total_steps=10, evaluation__every_steps=5, checkpoint__best_mode='max'
  )  # fmt: skip
  loop.fit(linear.Experiment(config), tmp_path)
  checkpoint_of = lambda *arguments: evaluator.evaluate_workdir(str(tmp_path), *arguments)
  assert checkpoint_of('auto')['checkpoint'] == 10
  assert checkpoint_of('auto', [('data.test', 'x.txt')])['checkpoint'] == 5
  assert checkpoint_of('latest', [('data.test', 'x.txt')])['checkpoint'] == 10


def test_evaluate_workdir_takes_a_step_and_overrides_of_evaluation_only(run, build):
  overrides = [('evaluation.seed', '3'), ('data.validation', 'a=x.txt')]
  result = evaluator.evaluate_workdir(str(run), 5, overrides)
  assert result['checkpoint'] == 5 and result['overrides'] == dict(overrides)
  assert json.loads((run / 'eval' / '5.json').read_text()) == result
  assert build[0][0].evaluation.seed == 3 and build[0][0].data.validation == 'a=x.txt'
  for key in ('model.emb_dim', 'seed', 'data.train'):
    with pytest.raises(UserError, match=f'config.{key}: eval.py takes the config of the run'):
      evaluator.evaluate_workdir(str(run), 5, [(key, '1')])
  for key in ('every_steps', 'patience', 'max_batches', 'max_written'):
    with pytest.raises(UserError, match=f'config.evaluation.{key}: would do nothing'):
      evaluator.evaluate_workdir(str(run), 5, [(f'evaluation.{key}', '1')])
  with pytest.raises(UserError, match='--checkpoint=7: valid are latest, best, average:N, 5, 10'):
    evaluator.evaluate_workdir(str(run), '7')


def test_text_that_was_not_held_out_is_not_evaluated_as_if_it_had_been(run, monkeypatch):
  def build(config, workdir, *, training):
    experiment = linear.Experiment(config)
    experiment.held_out = {} if config.data.validation else {'validation': 'text, changed'}
    return experiment

  monkeypatch.setattr(experiments, 'build', build)
  with pytest.raises(UserError, match="config.data.train: what is held out of it as 'validation'"):
    evaluator.evaluate_workdir(str(run))
  evaluator.evaluate_workdir(str(run), 'latest', [('data.validation', 'x.txt')])


class Reporting(Task):
  """A task that reports in every way there is."""

  def metrics(self, predictions, examples):
    return {'count': float(len(predictions['value']))}

  def details(self, predictions, examples):
    return {'first': examples[0]}

  def records(self, predictions, examples):
    yield {'text': examples[1], 'value': float(predictions['value'][1])}

  def files(self, predictions, examples):
    return {'table.json': b'{}\n'}


def test_what_a_task_reports_is_written_and_skipped_rows_are_counted(tmp_path, monkeypatch):
  data = dataclasses.replace(DataConfig(), on_bad_row='skip')
  experiment = Experiment()
  experiment.config = types.SimpleNamespace(data=data)
  experiment.task, experiment.skipped = Reporting(), {'validation': 3}
  opened = lambda workdir, which, make: (experiment, None, 7)
  monkeypatch.setattr(evaluator.restore, 'open_run', opened)
  result = evaluator.evaluate_workdir(str(tmp_path))['validation']
  assert (result['count'], result['first'], result['skipped_rows']) == (6.0, 'a', 3)
  names = {path.name: path.read_text() for path in (tmp_path / 'eval').iterdir()}
  assert json.loads(names['7.json'])['validation'] == result
  assert json.loads(names['7-validation.jsonl']) == {'text': 'b', 'value': 2.0}
  assert names['7-validation-table.json'] == '{}\n'


def test_a_set_without_any_label_has_no_loss():
  experiment = Experiment(likelihood=False)
  inner = experiment.eval_step

  def eval_step(params, batch, memory):
    _, predictions, _ = inner(params, batch, memory)
    return {'loss': Mean(0.0, 0.0)}, predictions, memory

  experiment.eval_step = eval_step
  evaluation = evaluator.evaluate(experiment, None, 'validation')
  assert math.isnan(evaluation.metrics['loss']) and evaluation.metrics['in_order'] == 1.0
