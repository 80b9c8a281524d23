"""Near duplicates: shingles by hand, similarity by sets, and what a band promises."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from flaxlm.data import minhash


def by_hand(text, n):
  """Sets of tuples of words, of which the shingles are hashes."""
  words = text.split()
  return {tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))} if words else set()


texts = st.lists(st.sampled_from('abcd'), max_size=12).map(' '.join)


@hypothesis.given(texts, texts, st.integers(1, 4))
def test_similarity_is_that_of_sets_of_ngrams(first, second, n):
  shingles = minhash.Shingles(n)
  a, b = by_hand(first, n), by_hand(second, n)
  assert len(shingles(first)) == len(a)
  expected = len(a & b) / len(a | b) if a | b else 0.0
  assert minhash.jaccard(shingles(first), shingles(second)) == pytest.approx(expected)


def test_what_counts_as_the_same_text():
  same = ['Straße  und\nMeer', 'STRASSE UND MEER', '\uff33trasse und meer']
  assert len({minhash.normalise(text) for text in same}) == 1
  assert minhash.normalise('a, b') != minhash.normalise('a b')
  shingles = minhash.Shingles(2)
  np.testing.assert_array_equal(shingles('a, b.'), shingles('a b'))


def test_characters_of_unspaced_scripts_are_words():
  shingles = minhash.Shingles(2)
  assert len(shingles('北京大学 abc')) == 4
  assert len(shingles('abc大学')) == 2
  assert not len(shingles('... !'))


def test_forgotten_words_keep_their_hashes(monkeypatch):
  monkeypatch.setattr(minhash, 'KEPT_WORDS', 3)
  shingles = minhash.Shingles(2)
  first = shingles('a b c d e')
  shingles('p q r s t')
  np.testing.assert_array_equal(shingles('a b c d e'), first)


def overlapping(similarity, rng, size=400):
  """Two sets of random shingles with that Jaccard similarity, but for rounding."""
  shared = round(similarity * size)
  values = rng.integers(0, 1 << 63, 2 * size - shared, np.uint64)
  return values[:size], values[size - shared :]


@pytest.mark.parametrize('threshold', [0.5, 0.8, 0.95])
def test_bands_miss_seldom_what_is_at_the_threshold_and_catch_little_far_below(threshold):
  bands, rows = minhash.bands_for(threshold)
  assert bands * rows <= minhash.MINIMA
  assert 1 - (1 - threshold**rows) ** bands >= 0.999
  sign, rng = minhash.Signer(bands, rows), np.random.default_rng(0)
  for jaccard in (threshold, threshold / 2):
    caught = 0
    for _ in range(200):
      size = 400
      shared = 2 * jaccard / (1 + jaccard)
      a, b = overlapping(shared, rng, size)
      caught += bool((sign(a) == sign(b)).any())
    expected = 1 - (1 - jaccard**rows) ** bands
    assert abs(caught / 200 - expected) < 4 * (expected * (1 - expected) / 200) ** 0.5 + 0.01


def test_a_signature_does_not_depend_on_order_or_chunks(monkeypatch):
  rng = np.random.default_rng(0)
  sign, values = minhash.Signer(20, 6), rng.integers(0, 1 << 63, 1000, np.uint64)
  expected = sign(values)
  monkeypatch.setattr(minhash, 'CHUNK', 7)
  np.testing.assert_array_equal(sign(rng.permutation(values)), expected)


@hypothesis.given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), max_size=20))
def test_candidates_are_the_pairs_that_share_a_band(rows):
  keys = np.array(rows, np.uint32).reshape(-1, 3)
  pairs, whole = minhash.candidates(keys, 1000)
  n = len(rows)
  expected = [[i, j] for i in range(n) for j in range(i + 1, n) if (keys[i] == keys[j]).any()]
  assert whole and pairs.tolist() == expected


def test_large_groups_and_too_many_pairs():
  keys = np.zeros((100, 1), np.uint32)
  pairs, whole = minhash.candidates(keys, 1000)
  assert whole and {tuple(p) for p in pairs} == {(0, i) for i in range(1, 100)} | {
    (i - 1, i) for i in range(1, 100)
  }
  pairs, whole = minhash.candidates(keys, 10)
  assert not whole and len(pairs) == 10


def test_pairs_are_compared_in_parts_that_fit():
  pairs = np.array([[0, 1], [0, 2], [3, 4], [3, 5], [4, 5]])
  sizes = np.array([5, 5, 5, 5, 5, 50])
  parts = minhash.packed(pairs, sizes, 20)
  np.testing.assert_array_equal(np.concatenate(parts), pairs)
  for part in parts:
    assert len(part) == 1 or sizes[np.unique(part)].sum() <= 20
  assert len(parts) > 2 and minhash.packed(pairs[:0], sizes, 20) == []
