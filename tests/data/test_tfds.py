"""TFDS sets without TensorFlow: read, cut, converted; and what is said where that cannot be."""

import json
import struct
import sys
import time

import pytest
import test_distributed

from flaxlm.config.data import DataConfig
from flaxlm.data import source, splits, tfds
from flaxlm.errors import UserError

BUILDER = """
import numpy as np
import tensorflow_datasets as tfds

class FlaxlmLines(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {'text': tfds.features.Text(), 'raw': tfds.features.Text(),
                'n': tfds.features.Scalar(np.int32),
                'label': tfds.features.ClassLabel(names=['bad', 'good']),
                'tags': tfds.features.Sequence(tfds.features.ClassLabel(names=['O', 'B-X']))}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples(20), 'test': self._generate_examples(5)}

  def _generate_examples(self, number):
    for i in range(number):
      yield i, {'text': f'line {i} of {number}, ünï', 'raw': b'\\xff', 'n': i, 'label': i % 2,
                'tags': [0, i % 2]}
"""


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """Data directory with the set `flaxlm_lines`, prepared as array_record, without its code."""
  folder = tmp_path_factory.mktemp('tfds')
  (folder / 'flaxlm_lines_builder.py').write_text(BUILDER)
  sys.path.insert(0, str(folder))
  import flaxlm_lines_builder as module
  import tensorflow_datasets

  builder = module.FlaxlmLines(data_dir=str(folder / 'data'), file_format='array_record')
  builder.download_and_prepare()
  sys.path.remove(str(folder))
  tensorflow_datasets.core.registered._DATASET_REGISTRY.pop('flaxlm_lines', None)
  return folder / 'data'


@pytest.fixture
def data_dir(prepared, monkeypatch):
  import tensorflow_datasets

  monkeypatch.setattr(tensorflow_datasets.core.constants, 'DATA_DIR', str(prepared))
  load = tensorflow_datasets.builder
  monkeypatch.setattr(
    tensorflow_datasets,
    'builder',
    lambda name, data_dir=None, **options: load(name, data_dir=data_dir or prepared, **options),
  )
  return prepared


@pytest.fixture
def as_tfrecord(data_dir, tmp_path):
  """The same set, named flaxlm_records and stored as TensorFlow would: length, CRC, record, CRC."""
  from array_record.python import array_record_module

  target = data_dir / 'flaxlm_records' / '1.0.0'
  target.mkdir(parents=True, exist_ok=True)
  for path in (data_dir / 'flaxlm_lines' / '1.0.0').iterdir():
    name = path.name.replace('flaxlm_lines', 'flaxlm_records')
    if 'array_record' in name:
      records = array_record_module.ArrayRecordReader(str(path)).read_all()
      framed = [struct.pack('<QI', len(r), 0) + r + bytes(4) for r in records]
      (target / name.replace('array_record', 'tfrecord')).write_bytes(b''.join(framed))
    else:
      (target / name).write_bytes(path.read_bytes())
  info = json.loads((target / 'dataset_info.json').read_text())
  info |= {'name': 'flaxlm_records', 'fileFormat': 'tfrecord'}
  (target / 'dataset_info.json').write_text(json.dumps(info))
  return DataConfig(train='tfds:flaxlm_records', cache_dir=str(tmp_path))


def test_rows_of_a_prepared_set(data_dir):
  config = DataConfig(text_column='text')
  rows = list(source.rows('tfds:flaxlm_lines', config))
  assert len(rows) == 20
  for where, row in rows:
    assert row['text'] == f'line {row["n"]} of 20, ünï'
    assert row['label'] == ('bad', 'good')[int(row['n']) % 2]
    assert json.loads(row['tags']) == ['O', ('O', 'B-X')[int(row['n']) % 2]]
    assert where.startswith('tfds:flaxlm_lines/train:')
  assert {row['n'] for _, row in rows} == {str(i) for i in range(20)}
  with pytest.raises(UserError, match="tfds:flaxlm_lines/train:0: column 'raw' is not UTF-8"):
    list(source.documents('tfds:flaxlm_lines', DataConfig(text_column='raw')).texts())


def test_splits_may_be_named_and_cut(data_dir):
  read = lambda place, **k: [r['n'] for _, r in source.rows(place, DataConfig(), **k)]
  whole = read('tfds:flaxlm_lines/train')
  assert read('tfds:flaxlm_lines/train[:25%]') == whole[:5]
  assert read('tfds:flaxlm_lines/train[5:]') == whole[5:]
  assert read('tfds:flaxlm_lines', split='test') == read('tfds:flaxlm_lines/test')
  assert len(read('tfds:flaxlm_lines/test')) == 5


def test_documents_of_a_prepared_set(data_dir):
  config = DataConfig(train='tfds:flaxlm_lines', validation='tfds:flaxlm_lines/test')
  train, held_out = splits.training(config), splits.validation(config)['validation']
  assert (train.num_documents, held_out.num_documents) == (20, 5)
  assert all('of 5' in text for text in held_out.texts())
  assert train.identity != held_out.identity


def test_unknown_names(data_dir):
  for place, message in [
    ('tfds:flaxlm_lines/tset', "no split 'tset' .did you mean 'test'"),
    ('tfds:imdb_review', "no such data set .did you mean 'imdb_reviews'"),
  ]:
    with pytest.raises(UserError, match=message):
      list(source.rows(place, DataConfig()))
  with pytest.raises(UserError, match="'txt'.*did you mean 'text'.*config.data.text_column"):
    list(source.documents('tfds:flaxlm_lines', DataConfig(text_column='txt')).texts())


def test_tfrecord_is_converted_without_tensorflow(as_tfrecord, data_dir):
  with pytest.raises(UserError) as error:
    list(source.rows('tfds:flaxlm_records', as_tfrecord))
  assert 'python -m flaxlm corpus convert --tfds=flaxlm_records' in str(error.value)
  tfds.convert('flaxlm_records', as_tfrecord)
  for split in ('train', 'test'):
    found = [row for _, row in source.rows(f'tfds:flaxlm_records/{split}', as_tfrecord)]
    assert found == [row for _, row in source.rows(f'tfds:flaxlm_lines/{split}', as_tfrecord)]


def test_what_cannot_be_converted(as_tfrecord, data_dir):
  for name, message in [('flaxlm_lines', 'prepared as array_record'), ('nosuch', 'not prepared')]:
    with pytest.raises(UserError, match=message):
      tfds.convert(name, as_tfrecord)
  path = next((data_dir / 'flaxlm_records' / '1.0.0').glob('*train.tfrecord*'))
  whole = path.read_bytes()
  path.write_bytes(whole[:-9])
  with pytest.raises(UserError, match='cut short'):
    tfds.convert('flaxlm_records', as_tfrecord)
  size = struct.unpack('<Q', whole[:8])[0] + 16
  path.write_bytes(whole[size:])
  with pytest.raises(UserError, match='19 records, but dataset_info.json says 20'):
    tfds.convert('flaxlm_records', as_tfrecord)
  with pytest.raises(UserError, match='convert'):  # Nothing half-made is left to be read.
    list(source.rows('tfds:flaxlm_records', as_tfrecord))


def test_what_is_not_there_is_prepared_once_by_all_processes(monkeypatch, tmp_path):
  made = []

  class Builder:
    def is_prepared(self):
      return bool(made)

    def download_and_prepare(self):
      time.sleep(0.2)
      made.append(1)

  monkeypatch.setattr(tfds, '_load', lambda name, data_dir, **options: Builder())
  config = DataConfig(cache_dir=str(tmp_path))
  found = test_distributed.Threads(monkeypatch, ['a', 'a', 'b']).run(
    lambda number: tfds.prepare('tfds:lines', config, 'train')
  )
  assert found == [None] * 3 and made == [1]
