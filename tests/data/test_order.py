"""The order of rows: a permutation each epoch, different ones, in blocks."""

import itertools

import numpy as np
import pytest
from scipy import stats

from flaxlm.data.order import EpochOrder, StreamOrder


@pytest.mark.parametrize('num_rows', [1, 2, 15, 16, 17, 1023, 1024, 1025, 2500, 20_000])
@pytest.mark.parametrize('block', [1, 7, 16])
def test_every_epoch_has_every_row_once(num_rows, block):
  order = EpochOrder(num_rows, seed=3, block=block)
  for epoch in range(3):
    found = [order[epoch * num_rows + i] for i in range(num_rows)]
    assert {e for e, _ in found} == {epoch}
    assert sorted(row for _, row in found) == list(range(num_rows))


def test_epochs_and_seeds_differ_and_repeat():
  def rows(seed, epoch):
    order = EpochOrder(300, seed)
    return [order[epoch * 300 + i][1] for i in range(300)]

  assert rows(0, 0) == rows(0, 0)
  assert rows(0, 0) != rows(0, 1) and rows(0, 0) != rows(1, 0) and rows(0, 1) != rows(1, 0)


def test_access_is_random():
  order = EpochOrder(5000, seed=1)
  straight = [order[i] for i in range(12000)]
  again = EpochOrder(5000, seed=1)
  for i in np.random.default_rng(0).permutation(12000)[:200]:
    assert again[int(i)] == straight[i]


def test_rows_of_a_block_stay_close():
  """Blocks of 16 land inside a window of 64 blocks, so that reads of a window are contiguous."""
  order = EpochOrder(100_000, seed=0, block=16, window=64)
  window = sorted(order[2048 + i][1] for i in range(1024))
  runs = 1 + int((np.diff(window) != 1).sum())
  assert runs <= 65  # 64 blocks; the turn of the circle may cut one.


@pytest.mark.parametrize('num_rows', [900, 20_000, 500_000])
def test_first_places_get_any_row(num_rows):
  """Over seeds and epochs, the row at a place is uniform (Kolmogorov-Smirnov)."""
  for place in (0, num_rows - 1):
    rows = [
      EpochOrder(num_rows, seed)[epoch * num_rows + place][1]
      for seed in range(30)
      for epoch in range(3)
    ]
    assert stats.kstest(np.array(rows) / num_rows, 'uniform').pvalue > 1e-3


def test_rows_are_mixed_within_a_window():
  order = EpochOrder(1000, seed=0)
  rows = np.array([order[i][1] for i in range(1000)])
  assert (np.diff(rows) == 1).mean() < 0.05
  assert abs(np.corrcoef(rows, np.arange(1000))[0, 1]) < 0.15


def test_rows_after_the_last_whole_block_move_too():
  order = EpochOrder(2007, seed=0, block=16, window=1)
  last = [sorted(order[epoch * 2007 + 2000 + i][1] for i in range(7)) for epoch in range(3)]
  assert last[0] != last[1] and last[1] != last[2]


@pytest.mark.parametrize(
  ('num_rows', 'streams'), [(12, 4), (13, 4), (5, 5), (1, 1), (100, 1), (100, 64)]
)
def test_streams_go_from_row_to_row(num_rows, streams):
  order, each = StreamOrder(num_rows, streams), -(-num_rows // streams)
  for step in range(3 * num_rows):
    assert len({order[step * streams + b][1] for b in range(streams)}) == streams
  walks = [[order[step * streams + b] for step in range(3 * num_rows)] for b in range(streams)]
  for walk in walks:
    rows = [row for _, row in walk]
    assert all(after == (before + 1) % num_rows for before, after in itertools.pairwise(rows))
  # An epoch sees every row, and no more of them twice than do not divide.
  for epoch in range(2):
    seen = [row for walk in walks for e, row in walk if e == epoch]
    assert set(seen) == set(range(num_rows)) and len(seen) == each * streams


def test_streams_need_a_row_each():
  with pytest.raises(ValueError, match='5 streams in 3 rows'):
    StreamOrder(3, 5)
