"""Cells: values of every kind as text, bytes that are none, columns that are not there."""

import datetime
import decimal
import json

import numpy as np
import pytest

from flaxlm.data import cells
from flaxlm.errors import UserError


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (None, ''),
    ('ünï', 'ünï'),
    ('ünï'.encode(), 'ünï'),
    (True, 'true'),
    (0.5, '0.5'),
    (datetime.date(2026, 1, 2), '2026-01-02'),
    (decimal.Decimal('1.50'), '1.50'),
    (np.int64(-1), '-1'),
    (np.float32(0.5), '0.5'),
    (np.bool_(True), 'true'),
    ([b'a', 'ü', None], '["a", "ü", null]'),
    (np.array([b'a', b'b'], object), '["a", "b"]'),
    ({'starts': np.arange(2), 'day': datetime.date(2026, 1, 2)},
     '{"starts": [0, 1], "day": "2026-01-02"}'),
  ],
)  # fmt: skip
def test_values_as_text(value, text):
  assert cells.as_text(value, 'f:1') == text


def test_bytes_that_are_no_text_are_an_error_only_where_they_are_read():
  row = {name: cells.as_text(value, 'f:1') for name, value in {'x': b'\xff', 'y': b'y'}.items()}
  assert row == {'x': "b'\\xff'", 'y': 'y'}
  assert cells.column(row, 'y', 'f:1') == 'y'
  with pytest.raises(UserError, match="^f:1: column 'x' is not UTF-8"):
    cells.column(row, 'x', 'f:1')
  assert json.loads(cells.as_text([b'\xff', b'y'], 'f:1')) == ["b'\\xff'", 'y']


def test_half_a_surrogate_pair_is_an_error():
  for value in ('\ud800', ['\ud800']):
    with pytest.raises(UserError, match='^f:1: half a surrogate pair'):
      cells.as_text(value, 'f:1')


def test_a_missing_column_is_named_with_what_names_it():
  row = {'txt': 'a', 'a line of text that is taken for a name': 'b'}
  with pytest.raises(UserError) as error:
    cells.column(row, 'text', 'f:1', '--text-column')
  assert str(error.value) == (
    "f:1: no column 'text' (did you mean 'txt'?); set --text-column to its name or, where the file "
    'has no header, to its number from 0'
  )
  with pytest.raises(
    UserError, match=r"^f:1: no column '7' \(valid: txt, a line of text that \.\.\.\)$"
  ):
    cells.column(row, '7', 'f:1')
