"""init_from: weights only, strictly; open_run: what every other command reads."""

import json
import types

import jax
import linear_experiment as linear
import numpy as np
import pytest

from flaxlm.errors import UserError
from flaxlm.training import checkpoint, loop, restore
from flaxlm.types import GUARD


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A run of the linear experiment with three layers: (workdir, parameters)."""
  workdir = tmp_path_factory.mktemp('source')
  experiment = linear.Experiment(linear.make_config(total_steps=6), layers=3)
  return workdir, jax.device_get(loop.fit(experiment, workdir).params)


def experiment(source, layers=3, **changes):
  config = linear.make_config(total_steps=4, init_from=str(source[0]), **changes)
  return linear.Experiment(config, layers=layers)


def start(source, workdir, **changes):
  return loop.start(experiment(source, **changes), workdir)[:2]


def test_init_from_takes_weights_and_begins_at_step_0(source, tmp_path):
  state, step = start(source, tmp_path)
  assert step == 0 and int(state.step) == 0
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), source[1])
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
  report = json.loads((tmp_path / 'restore_report.json').read_text())
  assert report['step'] == 6 and report['workdir'] == str(source[0])
  assert report['loaded'] == ['head/kernel', 'trunk/layers/kernel', 'trunk/scale']
  assert not report['fresh'] + report['dropped'] + report['reshaped']


@pytest.mark.parametrize('before', [('bad', 'good'), ('LABEL_0', 'LABEL_1'), ()])
def test_a_head_is_not_read_for_other_labels(before):
  labelled = lambda labels: types.SimpleNamespace(task=types.SimpleNamespace(labels=labels))
  restore._check_labels(labelled(before), labelled(before))
  if before != ('bad', 'good'):
    restore._check_labels(labelled(before), labelled(('a', 'b')))
    return
  for labels in (('good', 'bad'), ('a', 'b')):
    with pytest.raises(UserError, match='config.task.labels: .* trained for bad,good, in this'):
      restore._check_labels(labelled(before), labelled(labels))


def test_a_guarded_run_takes_weights_too(source, tmp_path):
  """Nothing of what the first step uses up is there twice."""
  state = loop.fit(experiment(source, guard__policy='skip'), tmp_path)
  assert int(state.step) == 4 and int(state.extras[GUARD].skipped) == 0


def test_every_kind_of_leaf_is_printed(source, tmp_path, capsys):
  start(source, tmp_path, restore__skip=('^head/',))
  said = capsys.readouterr().err
  assert 'loaded: 2 (trunk/layers/kernel, trunk/scale)' in said
  assert 'fresh: 1 (head/kernel)' in said and 'dropped: 1 (head/kernel)' in said


def test_a_resume_is_not_an_init_from(source, tmp_path):
  loop.fit(experiment(source), tmp_path)
  _, step = start(source, tmp_path)
  assert step == 4


def test_fewer_layers_and_a_fresh_layer(source, tmp_path):
  state, _ = start(source, tmp_path, layers=2, restore__skip=('layers/2/',))
  kernel = np.asarray(state.params['trunk']['layers']['kernel'])
  np.testing.assert_array_equal(kernel, source[1]['trunk']['layers']['kernel'][:2])
  fresh = experiment(source).init_state().params['trunk']['layers']['kernel']
  state, _ = start(source, tmp_path / 'b', restore__skip=('layers/1/',))
  kernel = np.asarray(state.params['trunk']['layers']['kernel'])
  stored = source[1]['trunk']['layers']['kernel']
  np.testing.assert_array_equal(kernel, [stored[0], np.asarray(fresh)[1], stored[2]])


def test_layers_in_another_order(source, tmp_path):
  state, _ = start(source, tmp_path, restore__rename=('layers/0/=layers/1/', 'layers/1/=layers/0/'))
  kernel = np.asarray(state.params['trunk']['layers']['kernel'])
  np.testing.assert_array_equal(kernel, source[1]['trunk']['layers']['kernel'][[1, 0, 2]])


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'model__emb_dim': 128}, 'config.model.emb_dim: .* has 256, this model 128'),
    ({'layers': 2}, 'leaf trunk/layers/2/kernel of the checkpoint has no place'),
    ({'restore__skip': ('nothing',)}, 'matches no leaf'),
    ({'restore__change': ('emb_dmi',)}, "no model field 'emb_dmi' .did you mean 'emb_dim'"),
  ],
)
def test_what_is_not_declared_is_an_error(source, tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    start(source, tmp_path, **changes)


def test_declared_and_harmless_differences_pass(source, tmp_path):
  start(source, tmp_path, model__emb_dim=128, restore__change=('emb_dim',))
  start(source, tmp_path, model__remat='full', model__scan_layers=True)


def test_another_tokenizer_is_an_error_unless_declared(source, tmp_path):
  other = experiment(source)
  other.tokenizer = linear.Tokenizer('other')
  with pytest.raises(UserError, match='config.tokenizer: differs'):
    loop.start(other, tmp_path)
  declared = experiment(source, restore__change=('tokenizer',))
  declared.tokenizer = linear.Tokenizer('other')
  loop.start(declared, tmp_path)


def test_a_workdir_without_checkpoints_is_named(tmp_path):
  with pytest.raises(UserError, match='config.init_from: .*absent has no checkpoints'):
    start((tmp_path / 'absent',), tmp_path / 'run')


def test_open_run_reads_any_checkpoint_of_a_run(source, tmp_path):
  make = lambda config: linear.Experiment(config, layers=3)
  found, params, step = restore.open_run(source[0], 'latest', make)
  assert step == 6 and found.config.total_steps == 6
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), source[1])
  assert restore.open_run(source[0], 'best', make)[2] == 6
  assert restore.open_run(source[0], 5, make)[2] == 5
  with pytest.raises(UserError, match='no checkpoint there'):
    restore.open_run(tmp_path, 'latest', make)


def test_open_run_falls_back_on_a_whole_checkpoint_only_for_latest(tmp_path, capsys):
  loop.fit(linear.Experiment(linear.make_config(total_steps=6)), tmp_path)
  (tmp_path / 'checkpoints' / '6' / 'meta' / 'metadata').write_text('{')
  assert restore.open_run(tmp_path, 'latest', linear.Experiment)[2] == 5
  assert 'DAMAGED' in capsys.readouterr().err
  with pytest.raises(UserError, match='6: damaged'):
    restore.open_run(tmp_path, 6, linear.Experiment)
  assert checkpoint.steps_in(tmp_path / 'checkpoints') == [5, 6]
