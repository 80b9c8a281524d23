"""TFDS data sets by name, `tfds:NAME[/SPLIT]`; without TensorFlow if prepared as array_record.

NAME may have a configuration (`glue/sst2`), SPLIT may be cut (`train[:10%]`). Sets are looked for
in the cache directory, where `convert` leaves them, and in TFDS's own data directory
($TFDS_DATA_DIR or ~/tensorflow_datasets); one that is in neither is downloaded and prepared there.
"""

import importlib
import json
import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from flaxlm import distributed, terminal
from flaxlm.config.data import DataConfig
from flaxlm.data import bad_rows, cache, cells
from flaxlm.errors import UserError, first_line, nearest

READ = 1024  # Records that are read at once: single reads are twenty times slower.


def rows(
  place: str, config: DataConfig, split: str, bad: bad_rows.Handler = bad_rows.stop
) -> cells.Rows:
  """('tfds:NAME/SPLIT:NUMBER', column -> text); a ClassLabel is the name of its class.

  split: the one that is read where the place names none; bad: gets the mistake of a row that is not
  text. Raises UserError for sets that are not prepared, unknown splits, and sets prepared in a
  format that cannot be read here.
  """
  builder, split = _find(place, config, split)
  names = _class_names(builder.info.features)
  for number, record in enumerate(_records(builder, split, place)):
    where = f'tfds:{builder.info.name}/{split}:{number}'
    try:
      yield where, {name: _value(value, names.get(name), where) for name, value in record.items()}
    except UserError as error:
      bad(error)


def _value(value: Any, classes: Any, where: str) -> str:
  """A value as text; `classes`: the names of its classes, if it is one or a list of such.

  -1 stands for no class.
  """
  if classes is not None:
    name = lambda number: classes.int2str(int(number)) if number >= 0 else str(number)
    value = name(value) if np.ndim(value) == 0 else [name(number) for number in value]
  return cells.as_text(value, where)


def identity(place: str, config: DataConfig, split: str) -> list[Any]:
  """What the prepared files hash to, and which split of them is read; prepares them first."""
  prepare(place, config, split)
  builder, split = _find(place, config, split)
  paths = [path for info in builder.info.splits.values() for path in info.filepaths]
  files = sorted(cache.digest(config, epath.Path(path)) for path in paths)
  return [builder.info.full_name, split, files]


def convert(name: str, config: DataConfig) -> epath.Path:
  """Writes a set that is prepared as tfrecord again as array_record, into the cache directory.

  Both hold the same serialised examples, so neither TensorFlow nor a download is needed. Returns
  the directory, from which `tfds:NAME` reads from then on.
  """
  place = f'tfds:{name}'
  builder = _load(name, None)
  if builder is None or not builder.is_prepared():
    raise UserError(f'{place}: not prepared in {_data_dir()}; nothing to convert')
  if _format(builder) != 'tfrecord':
    raise UserError(f'{place}: prepared as {_format(builder)}, only tfrecord can be converted')
  target = cache.directory(config) / 'tfds' / builder.info.full_name
  if target.exists():
    return target
  source = epath.Path(builder.data_path)
  with cache.staged(target) as temporary:
    for path in sorted(source.iterdir()):
      if '.tfrecord' not in path.name and path.is_file():
        (temporary / path.name).write_bytes(path.read_bytes())
    for info in builder.info.splits.values():
      for path, length in zip(map(epath.Path, info.filepaths), info.shard_lengths, strict=True):
        _convert_shard(path, temporary / path.name.replace('.tfrecord', '.array_record'), length)
    meta = json.loads((source / 'dataset_info.json').read_text())
    meta['fileFormat'] = 'array_record'
    (temporary / 'dataset_info.json').write_text(json.dumps(meta, indent=2))
  return target


def _convert_shard(path: epath.Path, target: epath.Path, length: int) -> None:
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(target), 'group_size:1')
  number = 0
  with terminal.bar(f'convert {path.name}', length, 'records') as bar:
    for record in _tfrecords(path):
      writer.write(record)
      bar.advance(1)
      number += 1
  writer.close()
  if number != length:
    raise UserError(f'{path}: {number} records, but dataset_info.json says {length}')


def _tfrecords(path: epath.Path) -> Iterator[bytes]:
  """Records of a tfrecord file. Their checksums are not verified; lengths and their number are."""
  with path.open('rb') as file:
    while header := file.read(12):
      size = struct.unpack('<Q', header[:8])[0] if len(header) == 12 else 0
      record = file.read(size + 4)
      if len(header) < 12 or len(record) < size + 4:
        raise UserError(f'{path}: cut short')
      yield record[:-4]


def prepare(place: str, config: DataConfig, split: str) -> None:
  """Downloads and prepares a set that is nowhere yet, by one process of each file system.

  All processes of the run call it, in the same order as all else that they wait for.
  """
  distributed.prepare(
    lambda: _prepared(place, config, split) is not None,
    lambda: _download(place, split),
    f'prepare {place}',
  )


def _candidates(place: str, default: str) -> list[tuple[str, str]]:
  """What a place may mean: (name, split)."""
  name = place.removeprefix('tfds:')
  head, _, tail = name.rpartition('/')
  candidates = [(head, tail)] if '[' in name else [(name, default), (head, tail)]
  return [(name, split) for name, split in candidates if name]


def _prepared(place: str, config: DataConfig, default: str) -> tuple[Any, str] | None:
  """The prepared builder of a place, if there is one, and the split to read."""
  converted = cache.directory(config) / 'tfds'
  for data_dir in (converted, None):
    for name, split in _candidates(place, default):
      builder = _load(name, data_dir)
      if builder is not None and builder.is_prepared():
        return builder, split
  return None


def _download(place: str, default: str) -> None:
  for name, _ in _candidates(place, default):
    builder = _load(name, None, file_format='array_record')
    if builder is not None:
      terminal.phase('data', f'preparing tfds:{name} in {_data_dir()}')
      try:
        builder.download_and_prepare()
      except Exception as error:  # Of any kind: network, disk, the data set's own code.
        raise UserError(f'{place}: cannot be prepared: {first_line(error)}') from error
      return
  raise UserError(f'config.data: {place}: TFDS has no such data set{_nearest_set(place)}')


def _find(place: str, config: DataConfig, default: str) -> tuple[Any, str]:
  """The prepared builder of a place, and the split to read."""
  found = _prepared(place, config, default)
  if found is None:
    raise UserError(f'{place}: no longer in {_data_dir()}')
  builder, split = found
  return builder, _checked(split, builder, place)


def _load(name: str, data_dir: epath.Path | None, **options: Any) -> Any | None:
  import tensorflow_datasets as tfds

  # Old data sets register themselves when their package is imported.
  for package in ('text', 'summarization', 'translate', 'question_answering'):
    importlib.import_module(f'tensorflow_datasets.{package}')
  try:
    return tfds.builder(name, data_dir=data_dir and str(data_dir), **options)
  except (ValueError, ImportError):  # Unknown names; super_glue imports TensorFlow.
    return None


def _nearest_set(place: str) -> str:
  import tensorflow_datasets as tfds

  name = place.removeprefix('tfds:')
  try:
    tfds.builder(name)
  except ValueError as error:
    known = re.findall(r'^\t- (\S+)', str(error), re.MULTILINE)
    return nearest(name.split('/')[0], known) if known else f': {first_line(error)}'
  except ImportError as error:
    return f' without another package: {first_line(error)}'
  return ''


def _checked(split: str, builder: Any, place: str) -> str:
  names = list(builder.info.splits)
  for part in split.split('+'):
    if part.split('[')[0] not in names:
      raise UserError(f'config.data: {place}: no split {part!r}{nearest(part, names)}')
  return split


def _records(builder: Any, split: str, place: str) -> Iterator[dict[str, Any]]:
  found = _format(builder)
  if found == 'array_record':
    source = builder.as_data_source(split)
    for start in range(0, len(source), READ):
      yield from source.__getitems__(range(start, min(start + READ, len(source))))
    return
  if found != 'tfrecord':
    raise UserError(f'{place}: prepared as {found}; only array_record and tfrecord can be read')
  try:
    import tensorflow  # noqa: F401
  except ImportError:
    raise UserError(
      f'{place}: prepared as tfrecord, which needs TensorFlow; without it, convert it first: '
      f'python -m flaxlm corpus convert --tfds={builder.info.full_name.rpartition("/")[0]}'
    ) from None
  import tensorflow_datasets as tfds

  yield from tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))


def _format(builder: Any) -> str:
  return builder.info.file_format.value


def _data_dir() -> str:
  import tensorflow_datasets as tfds

  return tfds.core.constants.DATA_DIR


def _class_names(features: Any) -> dict[str, Any]:
  import tensorflow_datasets as tfds

  found = {}
  for name, feature in features.items():
    label = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    if isinstance(label, tfds.features.ClassLabel):
      found[name] = label
  return found
