"""Cells of a table's rows: which columns there are."""

from collections.abc import Mapping

from flaxlm.errors import UserError, nearest

_SHOWN = 20  # Characters of a name, which may be a line of text if a file has no header.


def column(row: Mapping[str, str], name: str, where: str, key: str = '') -> str:
  """The cell of a column, which is named or, in a file without a header, numbered from 0.

  Args:
    row: column -> text.
    name: of the column.
    where: 'FILE:LINE', for messages.
    key: the field or flag that names the column, for messages; '' if its name is fixed.

  Raises:
    UserError: if there is no such column.
  """
  if name not in row:
    hint = nearest(name, [n if len(n) <= _SHOWN else n[:_SHOWN] + '...' for n in row])
    if key:
      hint += f'; set {key} to its name or, where the file has no header, to its number from 0'
    raise UserError(f'{where}: no column {name!r}{hint}')
  return row[name]
