"""Every way of tuning: stopped and gone on equals left alone; parts and devices change nothing."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from conftest import assert_same_tree

from flaxlm.paths import leaf_paths
from flaxlm.training import checkpoint, loop

LENGTH = (('total_steps', '6'), ('checkpoint.every_steps', '3'), ('evaluation.every_steps', '6'))
WAYS = {
  'frozen': (('tuning.frozen', 'token/table,layers/0/'),),
  'bitfit': (('tuning.trainable', 'bias$,^head/'),),
  'features': (('tuning.frozen', '^trunk/'),),
  'layer_decay': (('tuning.layer_decay', '0.7'), ('optimizer.name', 'lion')),
  'unfreezing': (('tuning.unfreeze_steps', '2'), ('tuning.layer_decay', '0.8')),
  'unfreezing_by_epochs': (('tuning.unfreeze_epochs', '0.01'), ('optimizer.name', 'adafactor')),
  'lora': (('tuning.lora_rank', '3'), ('optimizer.ema_decay', '0.9'), ('tuning.r_drop', '1')),
  'adapters': (('model.adapter_dim', '4'), ('tuning.trainable', 'adapter,^head/')),
  'muon': (('optimizer.name', 'muon'), ('tuning.frozen', 'layers/1/'), ('data.word_drop', '0.2')),
  'wsd': (('optimizer.schedule', 'wsd'), ('data.word_mask', '0.2'), ('data.word_swap', '0.2')),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('tuned'))


@pytest.mark.full
@pytest.mark.parametrize('way', WAYS)
def test_stopped_and_gone_on_equals_left_alone(way, folder, tmp_path):
  changes = (*WAYS[way], *LENGTH, ('num_microbatches', '2'))
  experiment = tiny.experiment('classify.py:encoder', folder, changes)
  whole = loop.fit(experiment, tmp_path / 'whole')
  # The schedule is that of six steps; only the loop ends after three.
  loop.fit(dataclasses.replace(experiment, total_steps=3), tmp_path / 'cut')
  assert checkpoint.steps_in(tmp_path / 'cut' / 'checkpoints') == [3]
  assert_same_tree(loop.fit(experiment, tmp_path / 'cut'), whole)
  digests = [
    checkpoint.read_meta(tmp_path / name / 'checkpoints', 6)['digest'] for name in ('whole', 'cut')
  ]
  assert digests[0] == digests[1]


def step(experiment):
  state, metrics = experiment.train_step(
    tiny.random_state(experiment), experiment.put(experiment.train_data.batch(0))
  )
  return leaf_paths(jax.device_get(state.params)), metrics['loss'].value()


@pytest.mark.full
@pytest.mark.parametrize('way', ['frozen', 'lora', 'adapters', 'layer_decay'])
def test_parts_of_a_batch_change_nothing(way, folder):
  """By SGD, without dropout; with LoRA, R-Drop is left out, which needs dropout."""
  changes = [(key, value) for key, value in WAYS[way] if not key.endswith(('name', 'r_drop'))]
  changes += [('optimizer.name', 'sgd'), ('model.dropout_rate', '0')]
  run = lambda parts: step(
    tiny.experiment('classify.py:encoder', folder, (*changes, ('num_microbatches', parts)))
  )
  (expected, loss), (found, other) = run('1'), run('4')
  np.testing.assert_allclose(other, loss, rtol=1e-5)
  for path, leaf in expected.items():
    scale = np.abs(leaf).max()
    np.testing.assert_allclose(found[path], leaf, rtol=0, atol=1e-5 * scale, err_msg=path)
