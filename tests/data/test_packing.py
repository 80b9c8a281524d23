"""Packing: nothing is lost, nothing overflows, and the bound of `span_and_gap` holds."""

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from flaxlm.config.data import DataConfig
from flaxlm.data import packing, packing_index
from flaxlm.data.packing import Concatenated, FirstFit, Stream, Windows, pack_rows
from flaxlm.errors import UserError


def pack(items, streams):
  """One row: dict of arrays [capacity]."""
  return {key: rows[0] for key, rows in pack_rows([items], streams).items()}


@dataclasses.dataclass
class Documents:
  """A store in memory: token t of document d is 1000 * d + t."""

  lengths: np.ndarray

  def read(self, document, start, stop):
    tokens = np.arange(self.lengths[document], dtype=np.int32) + 1000 * document
    return tokens[max(start, 0) : max(stop, 0)]


lengths = st.lists(st.integers(0, 30), min_size=1, max_size=20).map(np.array)


@hypothesis.given(lengths, st.integers(1, 25), st.integers(-1, 6))
def test_rows_cover_every_virtual_position_once(lengths, span, gap):
  rows = Concatenated(Documents(lengths), span, gap)
  pieces = [piece for row in range(len(rows)) for piece in rows[row]]
  covered = [(p.document, i) for p in pieces for i in range(p.start, p.stop)]
  wanted = [(d, i) for d, n in enumerate(lengths) for i in range(n + gap if n else 0)]
  assert covered == wanted
  assert all(sum(p.stop - p.start for p in rows[row]) == span for row in range(len(rows) - 1))
  tokens = [t for p in pieces for t in p.read(p.start, p.stop)]
  if gap >= 0:
    assert tokens == [1000 * d + i for d, n in enumerate(lengths) for i in range(n)]


def test_pieces_know_their_document():
  rows = Concatenated(Documents(np.array([5, 0, 3])), span=6, gap=2)
  assert [(p.document, p.start, p.stop, p.length) for p in rows[0]] == [(0, 0, 6, 5)]
  assert [(p.document, p.start, p.stop, p.length) for p in rows[1]] == [(0, 6, 7, 5), (2, 0, 5, 3)]
  np.testing.assert_array_equal(rows[1][1].read(-3, 2), [2000, 2001])
  with pytest.raises(IndexError):
    rows[2]


streams = st.fixed_dictionaries(
  {
    'a': st.builds(
      Stream,
      st.integers(20, 60),
      st.just(('a',)),
      per_token=st.sampled_from([1.0, 0.9]),
      per_item=st.integers(0, 4).map(float),
    ),
    'b': st.builds(
      Stream,
      st.integers(8, 30),
      st.just(('b',)),
      per_token=st.sampled_from([0.15, 0.5]),
      per_item=st.integers(0, 3).map(float),
    ),
  }
)


@hypothesis.given(lengths, streams)
def test_span_and_gap_always_fit(lengths, streams):
  """Items as big as a stream's declaration allows never overflow it."""
  span, gap = packing.span_and_gap(streams)
  rows = Concatenated(Documents(lengths), span, gap)
  for row in range(len(rows)):
    items = []
    for piece in rows[row]:
      n = len(piece.read(piece.start, piece.stop))
      if n:
        sizes = {k: math.floor(s.per_token * n + s.per_item + 1e-9) for k, s in streams.items()}
        items.append({k: np.ones(size, np.int32) for k, size in sizes.items()})
    pack(items, streams)


def test_span_is_the_largest():
  stream = {'a': Stream(64, ('a',), per_token=1.0, per_item=3.0)}
  assert packing.span_and_gap(stream) == (61, 3)
  with pytest.raises(UserError, match='no room'):
    packing.span_and_gap({'a': Stream(3, ('a',), per_token=1.0, per_item=3.0)})


STREAMS = {
  'inputs': Stream(8, ('inputs',), prefix=''),
  'targets': Stream(4, ('targets', 'where', 'target_weights'), offset={'where': 'inputs'}),
}


def item(inputs, where, targets):
  return {
    'inputs': np.array(inputs, np.int32),
    'where': np.array(where, np.int32),
    'targets': np.array(targets, np.int32),
    'target_weights': np.ones(len(targets), np.float32),
  }


def test_pack_by_hand():
  row = pack([item([5, 6, 7], [1], [60]), item([8, 9], [0, 1], [80, 90])], STREAMS)
  expected = {
    'inputs': [5, 6, 7, 8, 9, 0, 0, 0],
    'segment_ids': [1, 1, 1, 2, 2, 0, 0, 0],
    'positions': [0, 1, 2, 0, 1, 0, 0, 0],
    'targets': [60, 80, 90, 0],
    'where': [1, 3, 4, 0],
    'target_weights': [1, 1, 1, 0],
  }
  assert {key: value.tolist() for key, value in row.items()} == expected
  assert {value.dtype for value in row.values()} == {np.dtype(np.int32), np.dtype(np.float32)}
  assert row['target_weights'].dtype == np.float32


def test_an_empty_row_has_all_keys():
  empty, full = pack([], STREAMS), pack([item([1], [0], [1])], STREAMS)
  assert empty.keys() == full.keys()
  assert all(not value.any() for value in empty.values())
  for key in empty:
    assert empty[key].shape == full[key].shape and empty[key].dtype == full[key].dtype


def test_rows_are_packed_alone():
  a, b = [item([1, 2], [1], [3])], [item([4], [0], [5]), item([6], [0], [7])]
  batch = pack_rows([a, b], STREAMS)
  for key in batch:
    np.testing.assert_array_equal(batch[key], [pack(a, STREAMS)[key], pack(b, STREAMS)[key]])


def test_what_does_not_fit_is_an_error():
  with pytest.raises(ValueError, match="'inputs' overflows"):
    pack([item([1] * 5, [0], [1]), item([1] * 4, [0], [1])], STREAMS)
  with pytest.raises(ValueError, match='where has 2 values, not 1'):
    pack([item([1], [0, 1], [1])], STREAMS)
  with pytest.raises(ValueError, match='not those of the streams'):
    pack([item([1], [0], [1]) | {'undeclared': np.zeros(1)}], STREAMS)


@hypothesis.given(
  st.lists(st.tuples(st.integers(0, 10), st.integers(0, 4)), max_size=150), st.integers(0, 3)
)
def test_first_fit_places_every_item_once_and_none_overflows(taken, seed):
  streams = {'a': Stream(10, ('a',)), 'b': Stream(4, ('b',))}
  sizes = np.array(taken, np.int64).reshape(-1, 2)
  rows = FirstFit({'a': sizes[:, 0], 'b': sizes[:, 1]}, streams, seed, open_rows=8)
  found = [rows[row] for row in range(len(rows))]
  assert sorted(i for row in found for i in row) == list(range(len(taken)))
  assert all((sizes[row].sum(axis=0) <= [10, 4]).all() and row for row in found)


def test_first_fit_fills_rows():
  sizes = np.random.default_rng(0).integers(3, 60, 3000)
  rows = FirstFit({'a': sizes}, {'a': Stream(128, ('a',))}, seed=0)
  assert sizes.sum() / (len(rows) * 128) > 0.95
  other = FirstFit({'a': sizes}, {'a': Stream(128, ('a',))}, seed=1)
  assert rows[0] != other[0]
  with pytest.raises(ValueError, match="'a': an item takes 129"):
    FirstFit({'a': np.array([129])}, {'a': Stream(128, ('a',))}, seed=0)


def test_first_fit_without_a_seed_keeps_the_order():
  rows = FirstFit({'a': np.array([6, 6, 4, 10])}, {'a': Stream(10, ('a',))}, seed=None)
  assert [rows[row] for row in range(len(rows))] == [[0, 2], [1], [3]]


def test_windows_are_of_documents_by_length_and_uniform_within():
  """Chi-square over all offsets."""
  lengths = np.array([12, 0, 3, 7])
  windows = Windows(Documents(lengths), span=4, gap=-1)
  rng = np.random.default_rng(0)
  counts = {}
  for _ in range(6000):
    (piece,) = windows.draw(rng)
    assert piece.stop - piece.start == min(4, piece.length - 1)
    counts[piece.document, piece.start] = counts.get((piece.document, piece.start), 0) + 1
  chances = {(0, i): 11 / 8 for i in range(8)} | {(2, 0): 2} | {(3, i): 6 / 3 for i in range(3)}
  assert set(counts) == set(chances)
  means = {place: 6000 * chance / 19 for place, chance in chances.items()}
  chi_square = sum((counts[place] - mean) ** 2 / mean for place, mean in means.items())
  assert chi_square < 31.3  # 99.9 % point at 11 degrees of freedom.


def test_without_open_rows_every_item_has_its_own():
  sizes = {'a': np.array([6, 2, 2, 10])}
  rows = FirstFit(sizes, {'a': Stream(10, ('a',))}, seed=0, open_rows=0)
  assert sorted(rows[i] for i in range(len(rows))) == [[0], [1], [2], [3]]


def test_an_index_of_many_items_is_made_once(tmp_path, monkeypatch):
  """It is the one that first-fit makes, another seed or length makes another, few are not kept."""
  monkeypatch.setattr(packing_index, 'LEAST', 100)
  config = DataConfig(cache_dir=str(tmp_path))
  streams = {'a': Stream(50, ('a',)), 'b': Stream(9, ('b',))}
  rng = np.random.default_rng(0)
  lengths = {'a': rng.integers(1, 40, 300), 'b': rng.integers(0, 5, 300)}
  made = lambda: len(list((tmp_path / 'packing').glob('*/rows.npz')))
  rows = lambda index: [index[row] for row in range(len(index))]
  expected = FirstFit(lengths, streams, 0, 8)
  for _ in range(2):
    assert rows(packing_index.first_fit(config, lengths, streams, 0, 8)) == rows(expected)
    assert made() == 1
  with monkeypatch.context() as patched:
    patched.setattr(packing, '_place', None)  # what is kept is not made again
    assert rows(packing_index.first_fit(config, lengths, streams, 0, 8)) == rows(expected)
  packing_index.first_fit(config, lengths, streams, 1, 8)
  longer = lengths | {'b': lengths['b'] + (np.arange(300) == 7)}
  found = packing_index.first_fit(config, longer, streams, 0, 8)
  assert rows(found) == rows(FirstFit(longer, streams, 0, 8))
  assert made() == 3
  for file in (tmp_path / 'packing').glob('*/rows.npz'):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
  with pytest.raises(UserError, match='damaged .*delete it'):
    packing_index.first_fit(config, lengths, streams, 0, 8)
  few = {name: values[:99] for name, values in lengths.items()}
  packing_index.first_fit(config, few, streams, 0, 8)
  assert made() == 3
