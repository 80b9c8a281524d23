"""Runs whose every path is in a bucket that, like Google's, can neither append nor rename."""

import json

import jax
import linear_experiment as linear
import numpy as np
import object_store
import pytest
import tiny
from etils import epath
from etils.epath import gpath
from orbax.checkpoint._src.path import gcs_utils

from flaxlm import files
from flaxlm.training import checkpoint, loop
from flaxlm.training.writers import read_metrics


@pytest.fixture(scope='module')
def store():
  """The objects of all buckets, while epath and tensorstore see them as gs://."""
  found = object_store.Store()
  server = object_store.serve(found)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('TENSORSTORE_GCS_HTTP_URL', f'http://127.0.0.1:{server.server_port}')
    patch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'token')
    patch.setitem(gpath._PREFIX_TO_BACKEND, 'gs', object_store.Backend(found))
    # Asked of Google's own library, which is not installed here; most buckets have none.
    patch.setattr(gcs_utils, 'is_hierarchical_namespace_enabled', lambda path: False)
    yield found
  server.shutdown()


@pytest.fixture
def bucket(store):
  """A bucket that is empty."""
  store.objects.clear()
  return epath.Path('gs://bucket')


def fit(workdir, **changes):
  config = linear.make_config(checkpoint__keep_last=5, **changes)
  return loop.fit(linear.Experiment(config), workdir)


def test_the_stand_in_is_as_strict_as_a_bucket(bucket):
  (bucket / 'a' / 'b').write_text('x')
  with pytest.raises(NotImplementedError):
    (bucket / 'a' / 'b').open('a')
  with pytest.raises(NotImplementedError):
    (bucket / 'a').rename(bucket / 'c')
  (bucket / 'empty').mkdir()
  assert not (bucket / 'empty').exists() and (bucket / 'a').is_dir()


def test_a_run_in_a_bucket_is_that_on_a_disk(bucket, tmp_path):
  expected = fit(tmp_path / 'run')
  found = fit(bucket / 'run')
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
  for line, other in zip(read_metrics(bucket / 'run'), read_metrics(tmp_path / 'run'), strict=True):
    assert (line['step'], line['split'], line['loss']) == (
      other['step'], other['split'], other['loss']
    )  # fmt: skip
  names = {path.name for path in files.children(bucket / 'run')}
  assert names >= {'checkpoints', 'config.json', 'metrics-00000.jsonl', 'tokenizer'}


@pytest.mark.full
def test_what_libraries_write_to_disks_only_is_copied(bucket):
  fit(bucket / 'run', profile__steps=(2, 3), logging__tensorboard=True)
  assert list((bucket / 'run' / 'profile' / 'plugins' / 'profile').glob('*/*.xplane.pb'))
  assert list((bucket / 'run' / 'tensorboard').glob('*tfevents*'))


def test_a_save_that_was_cut_short_is_not_read_and_not_kept(bucket, store):
  workdir = bucket / 'run'
  state = fit(workdir)
  directory = workdir / 'checkpoints'
  del store.objects['bucket/run/checkpoints/20/commit_success.txt']
  assert checkpoint.steps_in(directory) == [5, 10, 15]
  again = fit(workdir)
  jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
  assert checkpoint.steps_in(directory) == [5, 10, 15, 20]
  assert sorted(path.name for path in workdir.glob('metrics*')) == [
    'metrics-00000.jsonl', 'metrics-00001.jsonl'
  ]  # fmt: skip
  steps = [line['step'] for line in read_metrics(workdir) if line['split'] == 'train']
  assert steps == list(range(1, 21))


def test_a_damaged_checkpoint_is_set_aside(bucket, store):
  workdir = bucket / 'run'
  fit(workdir)
  name = 'bucket/run/checkpoints/20/meta/metadata'
  store.put(name, store.objects[name][0].replace(b'"step"', b'"stop"'))
  fit(workdir)
  assert checkpoint.steps_in(workdir / 'checkpoints') == [5, 10, 15, 20]
  assert (workdir / 'checkpoints-damaged' / '20' / 'meta' / 'metadata').exists()


@pytest.mark.full
def test_text_tokenizer_tokens_evaluation_and_predictions_are_in_a_bucket(bucket, tmp_path):
  """Trains a classifier from rows in the bucket, with its cache there; evaluates; predicts."""
  from flaxlm.commands import predict
  from flaxlm.evaluation import evaluator
  from flaxlm.training.experiment import build

  folder = tiny.write_corpus(tmp_path)
  for name in ('rows.tsv', 'text.txt'):
    (bucket / 'data' / name).write_text((folder / name).read_text())
  changes = (('data.cache_dir', 'gs://bucket/cache'), ('total_steps', '2'))
  config = tiny.load('gpt2.py:mini', bucket / 'data', changes)
  batch = build(config, 'gs://bucket/none').train_data.batch(0)
  local = tiny.experiment('gpt2.py:mini', folder, (('data.cache_dir', str(tmp_path / 'cache')),))
  jax.tree.map(np.testing.assert_array_equal, batch, local.train_data.batch(0))
  assert (bucket / 'cache' / 'stores').is_dir() and (bucket / 'cache' / 'tokenizers').is_dir()

  config = tiny.load('classify.py:encoder', bucket / 'data', changes)
  loop.train(config, 'gs://bucket/run')
  result = evaluator.evaluate_workdir('gs://bucket/run')
  assert json.loads((bucket / 'run' / 'eval' / '2.json').read_text()) == result
  lines = (bucket / 'run' / 'eval' / '2-validation.jsonl').read_text().splitlines()
  assert len(lines) == tiny.DOCUMENTS // 10
  argv = ['--workdir=gs://bucket/run', '--input=gs://bucket/data/rows.tsv']
  predict.main([*argv, '--output=gs://bucket/predictions.jsonl'])
  assert len((bucket / 'predictions.jsonl').read_text().splitlines()) == tiny.DOCUMENTS
