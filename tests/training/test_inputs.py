"""What a run reads, and what tells that it has changed."""

import numpy as np

from flaxlm.training import inputs


def test_the_digest_of_rows_sees_every_value_and_no_address():
  rows = lambda label, number: [
    {'text': 'a', 'label': 0, 'other': object()},
    {'text': 'b', 'label': label, 'spans': np.array([1, number])},
  ]
  first = inputs.rows_digest(rows(1, 2))
  assert inputs.rows_digest(rows(1, 2)) == first
  changed = (rows(0, 2), rows(1, 3), rows(1, 2)[::-1], rows(1, 2)[:1])
  assert len({first, *map(inputs.rows_digest, changed)}) == 5
