"""Parquet and ArrayRecord files: every kind of record, columns, row groups, what is damaged."""

import datetime
import decimal
import io
import json

import numpy as np
import pytest
from etils import epath

from flaxlm.config.data import DataConfig
from flaxlm.data import binary_tables, cells, source
from flaxlm.errors import UserError

TEXTS = ['one', 'zwei\nZeilen', '三', '{not json'] + [f'text {i}' for i in range(2000)]


def write_records(path, records):
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()
  return str(path)


def example(**features):
  from tensorflow_datasets.proto import tf_example_pb2

  made = tf_example_pb2.Example()
  for name, values in features.items():
    feature = made.features.feature[name]
    if isinstance(values[0], bytes):
      feature.bytes_list.value.extend(values)
    elif isinstance(values[0], int):
      feature.int64_list.value.extend(values)
    else:
      feature.float_list.value.extend(values)
  return made.SerializeToString()


def documents(place, **fields):
  return list(source.documents(str(place), DataConfig(**fields)).texts())


@pytest.mark.parametrize(
  'record',
  [
    lambda text: text.encode(),
    lambda text: json.dumps({'text': text, 'n': 3}).encode(),
    lambda text: example(text=[text.encode()], id=[7]),
  ],
  ids=['text', 'json', 'example'],
)
def test_records_of_every_kind(tmp_path, record):
  """In shards as they are named on clusters; two thousand records are several reads."""
  for shard in range(2):
    records = [record(text) for text in TEXTS[shard::2]]
    write_records(tmp_path / f'c4-train.array_record-0000{shard}-of-00002', records)
  expected = TEXTS[0::2] + TEXTS[1::2]
  assert documents(tmp_path / 'c4-train.array_record*') == expected
  found = source.documents(str(tmp_path / '*of-00002'), DataConfig()).located()
  assert next(iter(found))[0] == f'{tmp_path}/c4-train.array_record-00000-of-00002:1'


def test_features_of_an_example(tmp_path):
  records = [example(a=[b'x', b'y'], b=[1, 2], c=[0.5], d=[b'\xc3\xa4'], e=[-3], f=[b'\xff'])]
  place = write_records(tmp_path / 'x.array_record', records)
  ((where, row),) = source.rows(place, DataConfig())
  assert where == f'{place}:1'
  assert row == {'a': '["x", "y"]', 'b': '[1, 2]', 'c': '0.5', 'd': 'ä', 'e': '-3', 'f': "b'\\xff'"}
  with pytest.raises(UserError, match="no column 'text'.*config.data.text_column"):
    documents(place)
  assert documents(place, text_column='d') == ['ä']
  with pytest.raises(UserError, match="x.array_record:1: column 'f' is not UTF-8"):
    documents(place, text_column='f')


@pytest.mark.parametrize(
  ('records', 'message'),
  [
    ([example(text=[b'a']), b'\xff\xff'], 'x.array_record:2: not a tf.train.Example'),
    ([b'{"text": "a"}', b'{"text"'], 'x.array_record:2: malformed json'),
    ([b'fine', b'br\xffken'], 'x.array_record:2: not UTF-8'),
  ],
)
def test_bad_records_are_named_or_left_out(tmp_path, records, message):
  place = write_records(tmp_path / 'x.array_record', [records[0], records[1], records[0]])
  with pytest.raises(UserError, match=message):
    list(source.rows(place, DataConfig()))
  mistakes = []
  assert len(list(source.rows(place, DataConfig(), bad=mistakes.append))) == 2
  assert len(mistakes) == 1


def test_damaged_files(tmp_path):
  place = tmp_path / 'x.array_record'
  place.write_bytes(b'no records at all')
  with pytest.raises(UserError, match='x.array_record:1: not an ArrayRecord file, or damaged'):
    documents(place)


def test_a_remote_file_is_copied_first(tmp_path):
  content = io.BytesIO(epath.Path(write_records(tmp_path / 'x', [b'a', b'b'])).read_bytes())

  class Remote:
    def __str__(self):
      return 'gs://bucket/x.array_record'

    def open(self, mode):
      assert mode == 'rb'
      return content

  rows = list(binary_tables.array_record_rows(Remote(), pytest.fail))
  assert rows == [(f'gs://bucket/x.array_record:{i + 1}', {'text': 'ab'[i]}) for i in range(2)]


@pytest.fixture
def parquet(tmp_path):
  """Two megabytes and more of text in one row group, and another column of as much."""
  import pyarrow
  import pyarrow.parquet

  texts = [f'{i} {i * i * i} ' * 40 for i in range(2500)]
  table = pyarrow.table({'text': texts, 'other': texts[::-1], 'n': list(range(2500))})
  pyarrow.parquet.write_table(
    table,
    tmp_path / 'x.parquet',
    row_group_size=10**6,
    data_page_size=1 << 16,
    use_dictionary=False,
    compression=None,
  )
  return str(tmp_path / 'x.parquet'), texts


def test_parquet_reads_the_wanted_column_in_pieces(parquet, monkeypatch):
  """Bytes are counted: those of the text, and long before the end of the row group."""
  place, texts = parquet
  read = []

  class Counting(io.FileIO):
    def read(self, size=-1):
      found = super().read(size)
      read.append(len(found))
      return found

  monkeypatch.setattr(binary_tables, 'PAGES', 1 << 16)
  size, whole = sum(map(len, texts)), epath.Path(place).stat().length

  class Path:
    def open(self, mode):
      return Counting(place, mode)

    def __str__(self):
      return place

  rows = binary_tables.parquet_rows(Path(), ('text',), pytest.fail)
  assert next(rows) == (f'{place}:1', {'text': texts[0]})
  assert sum(read) < 0.75 * size < 0.4 * whole
  assert [row['text'] for _, row in rows] == texts[1:]
  assert sum(read) < 0.6 * whole
  assert len(next(binary_tables.parquet_rows(Path(), (), pytest.fail))[1]) == 3
  assert len(next(binary_tables.parquet_rows(Path(), ('nosuch',), pytest.fail))[1]) == 3


def test_parquet_cells_of_other_types_are_text(tmp_path):
  import pyarrow
  import pyarrow.parquet

  columns = {
    'bytes': pyarrow.array([b'caf\xc3\xa9'], pyarrow.binary()),
    'lists': [[b'a', b'b']],
    'decimal': [decimal.Decimal('1.50')],
    'date': [datetime.date(2026, 1, 2)],
    'picture': [b'\xff'],
  }
  file = tmp_path / 'x.parquet'
  pyarrow.parquet.write_table(pyarrow.table(columns), file)
  ((_, row),) = binary_tables.parquet_rows(epath.Path(file), (), pytest.fail)
  assert row == {
    'bytes': 'caf\u00e9', 'lists': '["a", "b"]', 'decimal': '1.50', 'date': '2026-01-02',
    'picture': "b'\\xff'",
  }  # fmt: skip


@pytest.fixture
def untold(tmp_path):
  """Parquet in which one row of three has what Python cannot hold, in every column but `label`."""
  import pyarrow as pa
  import pyarrow.parquet

  starts = [pa.py_buffer(np.array([0, 2, 4, 6], np.int32)), pa.py_buffer(b'ok\xff\xfeok')]
  broken = pa.Array.from_buffers(pa.string(), 3, [None, *starts])
  columns = {
    'text': broken,
    'list': pa.ListArray.from_arrays([0, 1, 2, 3], broken),
    'fine': pa.array([0, 1700000000123456789, None], pa.timestamp('ns')),
    'far': pa.array([0, 2**50, None], pa.timestamp('ms')),
    'day': pa.array([0, 2**30, None], pa.date32()),
    'long': pa.array([0, 2**62, None], pa.duration('s')),
    'zone': pa.array([0, 0, None], pa.timestamp('us', 'Nowhere/City')),
    'label': ['x', 'y', 'z'],
  }
  pa.parquet.write_table(pa.table(columns), tmp_path / 'x.parquet')
  return str(tmp_path / 'x.parquet')


def test_parquet_cells_that_python_cannot_hold_are_an_error_only_where_they_are_read(untold):
  rows = list(source.rows(untold, DataConfig()))
  assert [row['label'] for _, row in rows] == ['x', 'y', 'z']
  first, second, third = (row for _, row in rows)
  assert (first['text'], first['list'], first['fine']) == ('ok', '["ok"]', '1970-01-01 00:00:00')
  assert second['fine'] == '2023-11-14 22:13:20.123456789'
  assert third == dict.fromkeys(third, '') | {'text': 'ok', 'list': '["ok"]', 'label': 'z'}
  assert documents(untold, text_column='fine') == [first['fine'], second['fine']]
  for name in ('text', 'list'):
    assert cells.column(first, name, 'f') and cells.column(third, name, 'f')
    with pytest.raises(UserError, match=f"x.parquet:2: column '{name}' is not UTF-8"):
      documents(untold, text_column=name)
  with pytest.raises(UserError, match="column 'zone' is not UTF-8 text: timestamp.us, tz=Nowhere"):
    documents(untold, text_column='zone')


def test_parquet_shards_by_a_glob(parquet, tmp_path):
  place, texts = parquet
  (tmp_path / 'y-00001-of-00002.parquet').write_bytes(epath.Path(place).read_bytes())
  assert documents(tmp_path / '*.parquet') == 2 * texts
  with pytest.raises(UserError, match="no column 'txt'.*did you mean 'text'"):
    documents(place, text_column='txt')


def test_two_parquet_columns_of_one_name_are_an_error(tmp_path):
  import pyarrow
  import pyarrow.parquet

  columns = [pyarrow.array([name]) for name in 'abc']
  table = pyarrow.Table.from_arrays(columns, names=['text', 'label', 'label'])
  pyarrow.parquet.write_table(table, tmp_path / 'x.parquet')
  for read in (documents, lambda place: list(source.rows(str(place), DataConfig()))):
    with pytest.raises(UserError, match="x.parquet: two columns are called 'label'"):
      read(tmp_path / 'x.parquet')


def test_damaged_parquet_files_are_named(parquet):
  place, _ = parquet
  content = bytearray(epath.Path(place).read_bytes())
  content[4:2000] = bytes(1996)  # the header of the first page
  epath.Path(place).write_bytes(bytes(content))
  with pytest.raises(UserError, match='x.parquet:1: cannot be read'):
    documents(place)
