"""The weights that are evaluated: moving averages, means of checkpoints, LoRA merged."""

import json

import jax
import numpy as np
import pytest
import tiny

from flaxlm.commands import merge
from flaxlm.errors import UserError
from flaxlm.evaluation.evaluator import evaluate_workdir
from flaxlm.paths import leaf_paths
from flaxlm.training import checkpoint, loop, restore, weights
from flaxlm.training.experiment import build, open_model

RUN = (
  ('total_steps', '4'), ('checkpoint.every_steps', '2'), ('evaluation.every_steps', '4'),
  ('optimizer.learning_rate', '0.05'), ('optimizer.ema_decay', '0.2'),
  ('tuning.lora_rank', '2'), ('tuning.trainable', '^head/,layers/1/mlp/'),
)  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('weights'))


@pytest.fixture(scope='module')
def run(folder, tmp_path_factory):
  """(workdir, trained part after each step) of a run with LoRA, frozen layers and an average."""
  workdir = tmp_path_factory.mktemp('run')
  experiment = tiny.experiment('classify.py:encoder', folder, RUN)
  parts = [experiment.partition.take(experiment.init_state().params)]
  step = experiment.train_step

  def recorded(state, batch):
    state, metrics = step(state, batch)
    parts.append(experiment.partition.take(jax.device_get(state.params)))
    return state, metrics

  experiment.__dict__['train_step'] = recorded
  loop.fit(experiment, workdir)
  return workdir, [jax.device_get(part) for part in parts]


def stored(workdir, step):
  """Everything in a checkpoint, on the host."""
  directory = workdir / 'checkpoints'
  meta = checkpoint.read_meta(directory, step)
  experiment = build(restore.tree.from_dict(meta['config']), workdir, training=False)
  return checkpoint.restore_tree(directory, step, experiment.abstract_state, meta)


def test_the_average_is_the_sum_written_out(run):
  workdir, parts = run
  found = leaf_paths(stored(workdir, 4).extras['ema'])
  for path, leaf in found.items():
    values = [np.asarray(leaf_paths(part)[path], np.float64) for part in parts]
    expected = values[0]
    for value, decay in zip(values[1:], (1 / 10, 2 / 11, 0.2, 0.2), strict=True):
      expected = decay * expected + (1 - decay) * value
    np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-7, err_msg=path)


def test_what_is_evaluated_is_the_average_and_merged(run):
  workdir, _ = run
  experiment, found, _ = open_model(str(workdir), 'latest')
  state = stored(workdir, 4)
  part = experiment.partition.put(state.params, state.extras['ema'])
  factors = part['delta']['trunk']['stack']['layers']['attention']['query']['kernel']
  kernel = part['trunk']['stack']['layers']['attention']['query']['kernel']
  expected = kernel + 8 * np.einsum('ldr,lrhk->ldhk', factors['a'], factors['b'])
  merged = found['trunk']['stack']['layers']['attention']['query']['kernel']
  np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6)
  assert set(found) == {'trunk', 'head'}
  table = 'trunk', 'token', 'table'
  np.testing.assert_array_equal(
    found[table[0]][table[1]][table[2]], part['trunk']['token']['table']
  )
  assert (
    found['head']['classes']['out']['kernel'] != state.params['head']['classes']['out']['kernel']
  ).any()


def test_evaluation_chooses_between_the_average_and_the_last_values(run):
  workdir, _ = run
  average = evaluate_workdir(str(workdir))['validation']['loss']
  last = evaluate_workdir(str(workdir), 'latest', [('evaluation.ema', 'false')])
  logged = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  during = [line['loss'] for line in logged if line['split'] == 'validation']
  np.testing.assert_allclose(average, during[-1], rtol=1e-5)
  assert abs(last['validation']['loss'] - average) > 1e-5


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('alpha', '64', 'multiplied by 16 / 2; set it to 16'),
    ('rank', '3', 'has rank 2; go on with that rank, or merge it first'),
  ],
)
def test_what_lora_has_learned_keeps_its_rank_and_scale(
  run, folder, tmp_path, field, value, message
):
  changes = *RUN, ('init_from', str(run[0])), (f'tuning.lora_{field}', value)
  with pytest.raises(UserError, match=f'config.tuning.lora_{field}: .* {message}'):
    loop.fit(tiny.experiment('classify.py:encoder', folder, changes), tmp_path)


def test_the_mean_of_checkpoints(run):
  workdir, _ = run
  singles = [open_model(str(workdir), step)[1] for step in (2, 4)]
  _, found, name = open_model(str(workdir), 'average:2')
  assert name == 'average:2'
  half = lambda a, b: (np.asarray(a, np.float64) + np.asarray(b, np.float64)) / 2
  expected = jax.tree.map(half, *singles)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
  assert evaluate_workdir(str(workdir), 'average:2')['checkpoint'] == 'average:2'
  assert (workdir / 'eval' / 'average-2.json').exists()
  with pytest.raises(UserError, match='--checkpoint=average:5: there are 2'):
    open_model(str(workdir), 'average:5')


def test_a_checkpoint_is_read_without_an_experiment_as_with_it(run):
  workdir, _ = run
  directory = workdir / 'checkpoints'
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  found = weights.read(directory, 4, checkpoint.read_meta(directory, 4), here)
  expected = open_model(str(workdir), 4)[1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


@pytest.mark.full
def test_a_merged_run_is_a_run_of_its_own(run, folder, tmp_path):
  workdir, _ = run
  target = tmp_path / 'merged'
  merge.main([f'--workdir={workdir}', f'--to={target}', '--checkpoint=average:2'])
  _, expected, _ = open_model(str(workdir), 'average:2')
  _, found, step = open_model(str(target), 'latest')
  assert step == 0
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  # It can be started from; the run with LoRA cannot, unless the new one has LoRA too.
  keep = ('restore.skip', ''), ('tokenizer.path', f'{target}/tokenizer')

  def start(source, *changes):
    changes = (('init_from', str(source)), *keep, *changes)
    return loop.start(tiny.experiment('classify.py:encoder', folder, changes), tmp_path / 'next')[
      :2
    ]

  state, _ = start(target)
  jax.tree.map(np.testing.assert_array_equal, state.params, found)
  with pytest.raises(UserError, match='config.init_from: .*tuned with LoRA.* merge --workdir='):
    start(workdir)
  state, _ = start(target, ('tuning.lora_rank', '3'))
  assert not np.any(leaf_paths(state.params)['delta/trunk/stack/layers/attention/value/kernel/b'])
