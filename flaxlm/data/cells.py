"""Rows of a table and their cells: values as text, and which columns there are."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxlm.errors import UserError, nearest

LocatedRow = tuple[str, dict[str, str]]  # ('FILE:LINE', column -> text).
Rows = Iterator[LocatedRow]
_SHOWN = 20  # Characters of a name, which may be a line of text if a file has no header.


class NotText(str):
  """What stands for a value that is no text: a picture's bytes, as Python shows them, or a type."""


def json_row(line: str, where: str) -> dict[str, str]:
  """The row that a line of JSON is; UserError, naming the place, if it is no object."""
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as error:  # Numbers too long, lists too deep for Python.
    raise UserError(f'{where}: malformed json: {error}') from None
  if not isinstance(row, dict):
    raise UserError(f'{where}: a row must be a json object, not {type(row).__name__}')
  return {name: as_text(value, where) for name, value in row.items()}


def check_names(names: Sequence[str], where: str) -> None:
  """Raises UserError where two columns have one name, since a row would hold only the last."""
  if twice := [name for i, name in enumerate(names) if name and name in names[:i]]:
    raise UserError(f'{where}: two columns are called {twice[0]!r}')


def as_text(value: Any, where: str) -> str:
  """A value of a row as text: bytes as UTF-8, '' for None, JSON for lists, objects and numbers.

  Raises UserError for half a surrogate pair, which has no bytes.
  """
  if value is None:
    return ''
  if not isinstance(value, str | bool | int | float | list | dict):
    value = _plain(value)
  text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_plain)
  try:
    text.encode()
  except UnicodeEncodeError:
    raise UserError(f'{where}: half a surrogate pair in {text[:40]!r}') from None
  return text


def _plain(value: Any) -> Any:
  """Something that JSON knows for a value that it does not: of bytes, numpy, or a date."""
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      return NotText(value)
  return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def column(row: Mapping[str, str], name: str, where: str, key: str = '') -> str:
  """The cell of a column, which is named or, in a file without a header, numbered from 0.

  Args:
    row: column -> text.
    name: of the column.
    where: 'FILE:LINE', for messages.
    key: the field or flag that names the column, for messages; '' if its name is fixed.

  Raises:
    UserError: if there is no such column, or it holds what is no text, such as bytes that are not
      UTF-8.
  """
  if name not in row:
    hint = nearest(name, [n if len(n) <= _SHOWN else n[:_SHOWN] + '...' for n in row])
    if key:
      hint += f'; set {key} to its name or, where the file has no header, to its number from 0'
    raise UserError(f'{where}: no column {name!r}{hint}')
  if isinstance(row[name], NotText):
    raise UserError(f'{where}: column {name!r} is not UTF-8 text: {row[name][:40]}')
  return row[name]
