"""Text where it lies: local files, TFDS data sets, and prose that every CPython carries.

A place is a file, a glob, `tfds:NAME[/SPLIT]` or `embedded`; rows may also come from a pair of
line-parallel files, `A+B`, or of globs that match as many. Files are text (.txt and any other
ending), .jsonl, .csv, .tsv (no quoting), .parquet or .array_record; all but these two also as .gz
or .xz. Everything is streamed. What cannot be read as it should be is a UserError that names the
file and line; of a labelled row, the caller may count it and go on.
"""

import csv
import dataclasses
import gzip
import itertools
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from etils import epath

from flaxlm.config.data import DataConfig
from flaxlm.data import bad_rows, binary_tables, cache, embedded, tfds
from flaxlm.data.cells import Rows, check_names, column, json_row
from flaxlm.errors import UserError
from flaxlm.files import nearest_sibling

TABLES = ('.jsonl', '.csv', '.tsv', '.parquet', '.array_record')
_JSON = ('.json', '.ndjson')  # No prose, and perhaps tables under another name.
PACKED = {'.gz': gzip.open, '.xz': lzma.open}
_UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error)  # What reading a file may raise.
# The ending under which a task names its reader of files that are no tables.
ANY_OTHER = '*'
# (file, config, handler of bad rows) -> rows.
Reader = Callable[[epath.Path, DataConfig, bad_rows.Handler], Rows]


@dataclasses.dataclass(frozen=True)
class Source:
  """A corpus: `located()` starts over each time it is called.

  identity: what the content and the way it is read hash to, JSON-able; a changed file changes it;
  located: (where it stands, text) of each document.
  """

  name: str
  identity: Any
  located: Callable[[], Iterator[tuple[str, str]]]

  def texts(self) -> Iterator[str]:
    """The text of each document."""
    return (text for _, text in self.located())


def documents(
  place: str,
  config: DataConfig,
  split: str = 'train',
  key: str = 'config.data',
  column_key: str = 'config.data.text_column',
) -> Source:
  """The documents of a place, cut as `config` says; empty ones are left out.

  split: of a TFDS set whose place names none; key, column_key: what names the place and the column
  of the text, for messages.
  """
  if place == 'embedded':
    if config.documents == 'row':
      raise UserError('config.data.documents: `embedded` is not a table, so it has no rows')
    read = lambda: ((f'embedded:{i}', text) for i, text in enumerate(embedded.documents()))
    return Source('embedded', embedded.identity(), read)
  if place.startswith('tfds:'):
    if config.documents not in ('auto', 'row'):
      raise UserError(f'config.data.documents: {place} is a table; its documents are rows (`row`)')
    read = lambda: _texts(tfds.rows(place, config, split), config, column_key)
    return Source(place, [tfds.identity(place, config, split), config.text_column], read)
  paths = files(place, key)
  identity = [[cache.digest(config, path) for path in paths], config.documents, config.text_column]
  return Source(place, identity, lambda: _file_documents(paths, config, column_key))


def rows(
  place: str,
  config: DataConfig,
  split: str = 'train',
  readers: Mapping[str, Reader] | None = None,
  bad: bad_rows.Handler = bad_rows.stop,
  key: str = 'config.data',
) -> Rows:
  """Rows of a table for tasks: ('FILE:LINE', column -> text); without a header: '0', '1', ...

  Of line-parallel files A+B, the columns are `text` and `target`.

  Args:
    place: where they lie.
    split: of a TFDS set whose place names none.
    readers: ending -> reader of a task's own file format; ANY_OTHER for all that are no tables.
    bad: gets the mistake of a row that cannot be read; such a row is left out if it returns.
    key: what names the place, for messages.
  """
  if place == 'embedded':
    raise UserError('config.data.train: a task needs labelled rows; `embedded` is text only')
  if place.startswith('tfds:'):
    tfds.prepare(place, config, split)
    yield from tfds.rows(place, config, split, bad)
    return
  first, *second = parts(place)
  if second:
    for pair in _pairs(files(first, key), files(*second, key), place):
      yield from _parallel(*pair, bad)
    return
  readers = readers or {}
  for path in files(place, key):
    ending = kind(path)
    if ending in readers:
      yield from readers[ending](path, config, bad)
    elif ending in TABLES:
      yield from _table(path, (config.text_column, config.label_column), bad)
    elif ANY_OTHER in readers:
      yield from readers[ANY_OTHER](path, config, bad)
    else:
      endings = ', '.join((*TABLES, *readers))
      raise UserError(f'{path}: rows come from {endings} files; those of text may be .gz or .xz')


def _pairs(
  first: list[epath.Path], second: list[epath.Path], place: str
) -> list[tuple[epath.Path, epath.Path]]:
  """The pairs of the line-parallel files of a place, in the order of their names."""
  if len(first) != len(second):
    raise UserError(
      f'config.data: {place!r}: the first names {len(first)} files, the second {len(second)}'
    )
  return list(zip(first, second, strict=True))


def _parallel(first: epath.Path, second: epath.Path, bad: bad_rows.Handler) -> Rows:
  """Line n of one file beside line n of the other."""
  escaped = 'surrogateescape'
  pairs = itertools.zip_longest(lines(first, escaped), lines(second, escaped))
  for number, (a, b) in enumerate(pairs, start=1):
    if a is None or b is None:
      longer, shorter = (second, first) if a is None else (first, second)
      bad(UserError(f'{longer}:{number}: has no line {number} beside it in {shorter}'))
      continue
    broken = [(path, why) for path, line in ((first, a), (second, b)) if (why := _broken(line[1]))]
    if broken:
      bad(UserError(f'{broken[0][0]}:{number}: not UTF-8 ({broken[0][1]})'))
    else:
      yield f'{first}:{number}', {'text': a[1], 'target': b[1]}


def parts(place: str) -> list[str]:
  """The two places of line-parallel files `A+B`; else the place itself."""
  return place.split('+') if place.count('+') == 1 and not matching(place) else [place]


def check(place: str, key: str) -> None:
  """UserError, naming the key, where a place names local files that are not there."""
  if place != 'embedded' and not place.startswith('tfds:'):
    for part in parts(place):
      files(part, key)


def has_columns(place: str, key: str) -> bool:
  """Whether text of the place is read from a column; UserError as of `files`."""
  if place == 'embedded' or place.startswith('tfds:'):
    return place != 'embedded'
  return any(kind(path) in TABLES for path in files(place, key))


def files(place: str, key: str = 'config.data') -> list[epath.Path]:
  """The files a place names, sorted; UserError, naming the key, where there are none."""
  found = matching(place)
  if found:
    return found
  path = epath.Path(place).expanduser()
  if '**' in place:  # epath reads none: of a bucket it would list every folder.
    raise UserError(f"{key}: {place!r}: '**' is not read; write '*' for each folder")
  if path.is_dir():
    raise UserError(f'{key}: {place} is a directory; name its files, as in {place}/*.txt')
  if any(c in place for c in '*?['):
    raise UserError(f'{key}: no file matches {place!r}')
  where = nearest_sibling(path) or f' (nor does {path.parent})'
  raise UserError(f'{key}: {place} does not exist{where}')


def matching(place: str) -> list[epath.Path]:
  """The file of that name or, where there is none, those that match, sorted; there may be none."""
  path = epath.Path(place).expanduser()
  _check_link(path)
  if path.exists():
    return [] if path.is_dir() else [path]
  if '**' in place or not any(c in place for c in '*?['):
    return []
  root, pattern = _split_glob(path)
  matches = sorted(root.glob(pattern)) if root.exists() else []
  for match in matches:
    _check_link(match)
  return [match for match in matches if match.is_file()]


def _check_link(path: epath.Path) -> None:
  """Raises UserError for a link to nothing, which does not exist for what lists files."""
  if os.path.islink(path) and not path.exists():
    raise UserError(f'{path}: a link to {os.readlink(path)}, which does not exist')


def _split_glob(path: epath.Path) -> tuple[epath.Path, str]:
  parts = path.parts
  first = next(i for i, part in enumerate(parts) if any(c in part for c in '*?['))
  return epath.Path(*(parts[:first] or ['.'])), '/'.join(parts[first:])


def kind(path: epath.Path) -> str:
  """The ending that says how a file is read: '.jsonl' for 'a.JSONL.gz' and 'a.jsonl-00-of-10'."""
  packed = path.suffix.lower() in PACKED
  suffix = epath.Path(path.stem).suffix if packed else path.suffix
  return re.sub(r'-\d+-of-\d+$', '', suffix.lower())


def _unpacked(path: epath.Path, raw: BinaryIO) -> BinaryIO:
  """The bytes of a file that is open, without the packing its ending tells of."""
  unpack = PACKED.get(path.suffix.lower())
  return unpack(raw) if unpack else raw


def lines(path: epath.Path, errors: str = 'strict') -> Iterator[tuple[int, str]]:
  """(line number from 1, line without its end) of a text file, plain, .gz or .xz.

  Ends may be LF or CRLF; a byte order mark is dropped. Raises UserError, naming the line, where the
  bytes are not UTF-8, unless `errors` ('surrogateescape') says otherwise.
  """
  with path.open('rb') as raw:
    file = _unpacked(path, raw)
    number = 0
    try:
      for number, line in enumerate(file, start=1):
        text = line.decode('utf-8-sig' if number == 1 else 'utf-8', errors)
        yield number, text.rstrip('\n').removesuffix('\r')
    except UnicodeDecodeError as error:
      raise UserError(f'{path}:{number}: not UTF-8 ({error.reason})') from None
    except _UNREADABLE as error:
      raise UserError(f'{path}:{number + 1}: cannot be read: {error}') from None


def whole_lines(path: epath.Path, bad: bad_rows.Handler) -> Iterator[tuple[int, str]]:
  """As `lines`, without those that are not UTF-8; `bad` gets them."""
  for number, text in lines(path, 'surrogateescape'):
    if why := _broken(text):
      bad(UserError(f'{path}:{number}: not UTF-8 ({why})'))
    else:
      yield number, text


def _broken(text: str) -> str:
  """Why the bytes of a text read with `surrogateescape` are not UTF-8; '' if they are."""
  try:
    text.encode('utf-8', 'surrogateescape').decode()
  except UnicodeDecodeError as error:
    return error.reason
  return ''


def _file_documents(
  paths: list[epath.Path], config: DataConfig, column_key: str
) -> Iterator[tuple[str, str]]:
  for path in paths:
    if kind(path) not in TABLES:
      if config.documents == 'row':
        raise UserError(f'config.data.documents: {path} is not a table, so it has no rows')
      if config.documents == 'auto' and kind(path) in _JSON:
        raise UserError(
          f'{path}: json is no running text; if it has an object a line, name it .jsonl; with '
          'config.data.documents=blank_line it is read as it stands'
        )
      if config.documents == 'file':
        texts = [(str(path), whole(path))]
      else:
        texts = _paragraphs(path)
    elif config.documents in ('auto', 'row'):
      table = _table(path, (config.text_column,), bad_rows.stop, only=True)
      texts = _texts(table, config, column_key)
    else:
      raise UserError(f'config.data.documents: {path} is a table; its documents are rows (`row`)')
    yield from ((where, text) for where, text in texts if text.strip())


def _paragraphs(path: epath.Path) -> Iterator[tuple[str, str]]:
  """('FILE:LINE', document) between blank lines; inside a document, line ends are kept."""
  block: list[str] = []
  for number, line in lines(path):
    if line.strip():
      block.append(line)
    elif block:
      yield f'{path}:{number - len(block)}', '\n'.join(block)
      block = []
  if block:
    yield f'{path}:{number - len(block) + 1}', '\n'.join(block)


def whole(path: epath.Path) -> str:
  """The text of a file, plain, .gz or .xz; UserError as of `lines`."""
  with path.open('rb') as raw:
    file = _unpacked(path, raw)
    try:
      return file.read().decode('utf-8-sig').replace('\r\n', '\n')
    except UnicodeDecodeError:
      pass
    except _UNREADABLE as error:
      raise UserError(f'{path}: cannot be read: {error}') from None
  for _ in lines(path):  # Finds the line that is not UTF-8.
    pass
  raise UserError(f'{path}: not UTF-8')


def _texts(table: Rows, config: DataConfig, column_key: str) -> Iterator[tuple[str, str]]:
  for where, row in table:
    text = column(row, config.text_column, where, column_key)
    if text.strip():
      yield where, text


def _table(
  path: epath.Path, wanted: tuple[str, ...], bad: bad_rows.Handler, only: bool = False
) -> Rows:
  """Rows of a table. Without a header where the wanted columns are numbers.

  only: whether others than the wanted columns may be left out.
  """
  ending = kind(path)
  if ending == '.jsonl':
    yield from _json_rows(path, bad)
  elif ending == '.parquet':
    yield from binary_tables.parquet_rows(path, wanted if only else (), bad)
  elif ending == '.array_record':
    yield from binary_tables.array_record_rows(path, bad)
  else:
    cells = _csv_cells(path, bad) if ending == '.csv' else tsv_cells(path, bad)
    yield from named(path, cells, any(name.isdigit() for name in wanted), bad)


def named(
  path: epath.Path,
  cells: Iterable[tuple[int, list[str]]],
  headerless: bool,
  bad: bad_rows.Handler,
) -> Rows:
  """Rows of (line number, cells). Names are in the first row, or are numbers if `headerless`."""
  names: list[str] | None = None
  for number, row in cells:
    if names is None:
      names = [str(i) for i in range(len(row))] if headerless else row
      check_names(names, f'{path}:{number}')
      if not headerless:
        continue
    if len(row) != len(names):
      what = f'{len(row)} columns, but the first line has {len(names)}'
      bad(UserError(f'{path}:{number}: {what}'))
    else:
      yield f'{path}:{number}', dict(zip(names, row, strict=True))


def tsv_cells(path: epath.Path, bad: bad_rows.Handler) -> Iterator[tuple[int, list[str]]]:
  """(line number, cells) of a .tsv file, in which a quote is a character like any other."""
  for number, line in whole_lines(path, bad):
    if line:
      yield number, line.split('\t')


def _csv_cells(path: epath.Path, bad: bad_rows.Handler) -> Iterator[tuple[int, list[str]]]:
  # strict: a stray quote is an error, not a merged row. A quoted field may hold line ends, so that
  # after such an error no row can be found again, and a line that is not UTF-8 stays in its row.
  csv.field_size_limit(1 << 30)
  reader = csv.reader((line + '\n' for _, line in lines(path, 'surrogateescape')), strict=True)
  start = 1
  try:
    for row in reader:
      reasons = [why for cell in row if (why := _broken(cell))]
      if reasons:
        bad(UserError(f'{path}:{start}: not UTF-8 ({reasons[0]})'))
      elif row:
        yield start, row
      start = reader.line_num + 1
  except csv.Error as error:
    raise UserError(f'{path}:{start}: malformed csv: {error}') from None


def _json_rows(path: epath.Path, bad: bad_rows.Handler) -> Rows:
  for number, line in whole_lines(path, bad):
    if not line.strip():
      continue
    try:
      yield f'{path}:{number}', json_row(line, f'{path}:{number}')
    except UserError as error:
      bad(error)
