"""A vocabulary that grows from a checkpoint: declared, old rows as they were, new ones the mean."""

import json

import jax
import numpy as np
import pytest
import tiny

from flaxlm.config import recipe, tree
from flaxlm.errors import UserError
from flaxlm.paths import leaf_paths
from flaxlm.training import checkpoint, loop
from flaxlm.training.experiment import build
from flaxlm.training.writers import write_json

PLACE = 'bert.py:mini'
SMALL = (('model.num_layers', '1'), ('tokenizer.name', 'characters'), ('tokenizer.sentinels', '0'))
# 99 rows beside those of the characters and roles: the table becomes longer than its padding.
ADD = [('tokenizer.add', 'sentinels'), ('tokenizer.sentinels', '99')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('corpus'))


@pytest.fixture(scope='module')
def source(folder):
  """(workdir, parameters by path, tokens) of an untrained run."""
  workdir = folder / 'source'
  experiment = build(tiny.load(PLACE, folder, SMALL), workdir)
  params = tiny.random_state(experiment).params
  experiment.tokenizer.save(workdir / 'tokenizer')
  write_json(workdir / 'config.json', tree.to_dict(experiment.config))
  meta = {
    'config': tree.to_dict(experiment.config), 'tokenizer': experiment.tokenizer.fingerprint,
    'total_steps': 1,
  }  # fmt: skip
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', experiment.config.checkpoint)
  checkpoints.save(0, {'params': params}, meta)
  checkpoints.close()
  leaves = {path: np.asarray(leaf) for path, leaf in leaf_paths(params).items()}
  return workdir, leaves, experiment.tokenizer.vocab_size


def started(source, folder, workdir, *more):
  """(experiment, parameters by path) of a run that starts from `source`."""
  overrides = [('init_from', str(source[0])), ('data.train', str(folder / 'text.txt')), *ADD, *more]
  config = recipe.load(str(tiny.ROOT / 'configs' / 'bert.py'), overrides)
  experiment = build(config, workdir)
  state, *_ = loop.start(experiment, workdir)
  return experiment, leaf_paths(jax.device_get(state.params))


def test_old_rows_are_kept_and_new_ones_are_their_mean(source, folder, tmp_path):
  _, stored, old = source
  declared = 'restore.change', 'vocab_size'
  experiment, params = started(source, folder, tmp_path, declared)
  new = experiment.tokenizer.vocab_size
  assert new == old + 99 and experiment.tokenizer.sentinel_ids[-1] == old
  tables = 'trunk/token/table', 'head/mlm/bias'
  for path, leaf in params.items():
    if path not in tables:
      np.testing.assert_array_equal(leaf, stored[path])
      continue
    assert leaf.shape[0] == experiment.config.model.table_size > stored[path].shape[0]
    np.testing.assert_array_equal(leaf[:old], stored[path][:old])
    mean = stored[path][:old].astype(np.float64).mean(0)
    np.testing.assert_allclose(leaf[old:new], np.broadcast_to(mean, leaf[old:new].shape), atol=1e-6)
  report = json.loads((tmp_path / 'restore_report.json').read_text())
  assert sorted(report['grown']) == sorted(tables)
  assert not report['fresh'] + report['dropped'] + report['reshaped']


def test_growth_that_is_not_declared(source, folder, tmp_path):
  old = source[2]
  with pytest.raises(UserError, match=rf'grows from {old} to {old + 99} .*change=vocab_size$'):
    started(source, folder, tmp_path)
  with pytest.raises(UserError, match='change=dropout_rate,vocab_size$'):
    started(source, folder, tmp_path, ('restore.change', 'dropout_rate'))


def test_what_is_no_growth(source):
  from flaxlm.data.tokenizer import Tokenizer

  older = Tokenizer.load(source[0] / 'tokenizer')
  grown = Tokenizer.load(source[0] / 'tokenizer', ('sentinels',), 3)
  assert grown.extends(older)
  assert not older.extends(grown) and not older.extends(older)
  moved = older.published_spec() | {'special': {**older.published_spec()['special'], '<new>': 1}}
  assert not Tokenizer(moved, older.files).extends(older)
