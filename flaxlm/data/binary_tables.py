"""Tables in binary files: parquet, and ArrayRecord files of any of three kinds of records.

The rows of a parquet file are read a few pages at a time, and only the columns that are wanted, so
that a row group may be larger than memory. An ArrayRecord file holds serialised `tf.train.Example`s
(as TFDS writes them), JSON objects, or texts; its first record tells. TensorFlow is not needed.
"""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from flaxlm import files
from flaxlm.data import bad_rows, cells
from flaxlm.errors import UserError, first_line

READ = 1024  # Rows or records that are read at once.
PAGES = 1 << 20  # Bytes of a column of a parquet file that are read at once.
TEXT = 'text'  # The column of records that are texts.


def parquet_rows(path: epath.Path, columns: Sequence[str], bad: bad_rows.Handler) -> cells.Rows:
  """('FILE:ROW', column -> text), rows from 1; of the columns, or of all if one is missing or none.

  Raises UserError for a file that is no parquet file, or has two columns of one name; `bad` gets
  rows that are no text.
  """
  import pyarrow
  import pyarrow.parquet

  with path.open('rb') as raw:
    try:
      # Without buffers of its own pyarrow reads whole row groups.
      file = pyarrow.parquet.ParquetFile(raw, pre_buffer=False, buffer_size=PAGES)
    except pyarrow.ArrowInvalid as error:
      raise UserError(f'{path}: not a parquet file: {error}') from None
    names = file.schema_arrow.names
    cells.check_names(names, str(path))
    wanted = list(columns) if columns and {*columns} <= {*names} else None
    number = 0
    try:
      for batch in file.iter_batches(batch_size=READ, columns=wanted):
        for row in zip(*map(_values, batch.columns), strict=True):
          number += 1
          where = f'{path}:{number}'
          try:
            values = {
              name: cells.as_text(value, where)
              for name, value in zip(batch.schema.names, row, strict=True)
            }
          except UserError as error:
            bad(error)
            continue
          yield where, values
    except (pyarrow.ArrowException, OSError) as error:
      raise UserError(f'{path}:{number + 1}: cannot be read: {error}') from None


def _values(column: Any) -> list[Any]:
  """The values of an Arrow array as Python has them or, where it has none such, as Arrow does."""
  try:
    return column.to_pylist()
  except (ValueError, OverflowError):  # UnicodeDecodeError is one, and ArrowInvalid.
    return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
  """What Python lacks: nanoseconds, dates past its years, zones unknown here, broken strings."""
  import pyarrow

  for read in (
    scalar.as_py,
    lambda: scalar.cast(pyarrow.string()).as_py(),
    lambda: scalar.cast(pyarrow.binary()).as_py(),  # Of a string that is not UTF-8.
  ):
    with contextlib.suppress(ValueError, OverflowError, pyarrow.ArrowException):
      return read()
  return cells.NotText(scalar.type)


def array_record_rows(path: epath.Path, bad: bad_rows.Handler) -> cells.Rows:
  """('FILE:RECORD', column -> text), records from 1; a record that is a text has the column `text`.

  Raises UserError for a file that is no ArrayRecord file; `bad` gets records of another kind than
  the first, and bytes that are not UTF-8.
  """
  with _local(path) as file:
    parse = None
    for number, record in enumerate(_records(file, path), start=1):
      where = f'{path}:{number}'
      parse = parse or _parser(record)
      try:
        row = parse(record, where)
      except UserError as error:
        bad(error)
        continue
      yield where, row


def _records(file: pathlib.Path, path: epath.Path) -> Iterator[bytes]:
  from array_record.python import array_record_module

  number = 0
  try:
    reader = array_record_module.ArrayRecordReader(str(file))
    total = reader.num_records()
    for number in range(0, total, READ):
      yield from reader.read(number, min(number + READ, total))
    reader.close()
  except (RuntimeError, ValueError, IndexError) as error:
    raise UserError(
      f'{path}:{number + 1}: not an ArrayRecord file, or damaged: {first_line(error)}'
    ) from None


@contextlib.contextmanager
def _local(path: epath.Path) -> Iterator[pathlib.Path]:
  """The file, or a copy of one that is elsewhere: the library reads local files."""
  if not files.is_object_store(path):
    yield pathlib.Path(path)
    return
  with tempfile.NamedTemporaryFile(suffix='.array_record') as copy:
    with path.open('rb') as remote:
      shutil.copyfileobj(remote, copy, 1 << 22)
    copy.flush()
    yield pathlib.Path(copy.name)


def _parser(record: bytes) -> Any:
  """(record, where) -> row, for records of the kind of this one."""
  if _example(record) is not None:
    return _example_row
  if record.lstrip()[:1] == b'{':
    return lambda record, where: cells.json_row(_decoded(record, where), where)
  return lambda record, where: {TEXT: _decoded(record, where)}


def _example(record: bytes) -> Mapping[str, Any] | None:
  """The features of a serialised tf.train.Example, or None."""
  from google.protobuf import message
  from tensorflow_datasets.proto import tf_example_pb2

  try:
    return tf_example_pb2.Example.FromString(record).features.feature or None
  except message.DecodeError:
    return None


def _example_row(record: bytes, where: str) -> dict[str, str]:
  features = _example(record)
  if features is None:
    raise UserError(f'{where}: not a tf.train.Example, as the first record of the file is')
  row = {}
  for name, feature in sorted(features.items()):
    kind = feature.WhichOneof('kind')
    values = list(getattr(feature, kind).value) if kind else []
    row[name] = cells.as_text(values[0] if len(values) == 1 else values or None, where)
  return row


def _decoded(record: bytes, where: str) -> str:
  try:
    return record.decode()
  except UnicodeDecodeError as error:
    raise UserError(f'{where}: not UTF-8 ({error.reason})') from None
