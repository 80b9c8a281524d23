"""Cells of a row, and what is wrong with them."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from flaxlm.config.data import DataConfig
from flaxlm.data import cells
from flaxlm.errors import UserError


def cell(row: Mapping[str, str], name: str, key: str, where: str) -> str:
  """`cells.column`; key: the field below `config` that names it, '' if its name is fixed."""
  return cells.column(row, name, where, key and f'config.{key}')


def text(row: Mapping[str, str], name: str, key: str, where: str) -> str:
  """As `cell`, of a text that must not be empty."""
  found = cell(row, name, key, where)
  if not found.strip():
    raise UserError(f'{where}: the text in column {name!r} is empty')
  return found


def text_or_pair(
  row: Mapping[str, str], text_column: str, pair_column: str, where: str
) -> dict[str, Any]:
  """'text' of a row and, with a `pair_column`, 'text_pair'; neither may be empty."""
  found = {'text': text(row, text_column, 'data.text_column', where)}
  if pair_column:
    found['text_pair'] = text(row, pair_column, 'task.pair_column', where)
  return found


def of_lines(data: DataConfig, pair_column: str) -> str:
  """The column that a bare line of text fills: that of the text or, of pairs, none ('')."""
  return '' if pair_column else data.text_column


def texts(example: Mapping[str, Any]) -> list[str]:
  """The one or two texts of what `text_or_pair` gave."""
  return [example[key] for key in ('text', 'text_pair') if key in example]


def label_part(read: Callable[[], dict[str, Any]], labelled: bool) -> dict[str, Any]:
  """What `read()` gives of a row's label.

  {} where it raises UserError and the row is not `labelled`: what cannot be used is no label then.
  """
  try:
    return read()
  except UserError:
    if labelled:
      raise
    return {}


def labels(config: Any) -> tuple[str, ...]:
  """`config.labels` of a task, empty where they are unset; UserError if one is there twice."""
  found = tuple(config.labels)
  for label in found:
    if found.count(label) > 1:
      raise UserError(f'config.task.labels: {label!r} is there twice')
  return found


def strings(cell: str, what: str, where: str) -> list[str]:
  """The texts of a cell that is a json list of them. `what` it is, for messages."""
  try:
    found: Any = json.loads(cell)
  except (ValueError, RecursionError):  # Also numbers too long, lists too deep for Python.
    found = None
  if not isinstance(found, list) or not all(isinstance(x, str | int | float) for x in found):
    raise UserError(f'{where}: {what} must be a json list of texts, got {cell[:40]!r}')
  return [str(x) for x in found]
