"""Masking and sentence pairs: their statistics, and that nothing is lost by them."""

import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from objective_setup import (
  Documents,
  batch_of,
  byte_tokenizer,
  make,
  random_documents,
  rows_of,
  whole,
)

from flaxlm.data import packing
from flaxlm.data.pipeline import ItemRng
from flaxlm.errors import UserError
from flaxlm.objectives import masked_lm

# Seeds are fixed: a test of a statistic fails at this level or never.
LEVEL = 1e-4


def mlm(**changes):
  return make('masked_lm', 'encoder', **changes)


def corrupted(objective, n, times, seed=0):
  """(tokens, features) of `times` corruptions of [CLS] tokens [SEP]."""
  t = objective.tokenizer
  rng = np.random.default_rng(seed)
  for _ in range(times):
    pieces = rng.integers(max(t.special_ids) + 1, t.vocab_size, n).astype(np.int32)
    tokens = np.concatenate([[t.cls_id], pieces, [t.sep_id]]).astype(np.int32)
    yield tokens, objective.corrupt(tokens, rng)


@pytest.mark.parametrize('rate, n', [(0.15, 101), (0.4, 33), (0.15, 3)])
def test_the_share_of_selected_tokens_is_exact_in_the_mean(rate, n):
  objective = mlm(objective__mask_rate=rate)
  counts = [len(f['targets']) for _, f in corrupted(objective, n, 3000)]
  assert set(counts) <= {int(rate * n), int(rate * n) + 1}
  ups, share = sum(c > int(rate * n) for c in counts), rate * n % 1
  assert scipy.stats.binomtest(ups, len(counts), share).pvalue > LEVEL


@pytest.mark.parametrize('mask, random', [(0.8, 0.1), (0.3, 0.5), (1.0, 0.0)])
def test_shares_of_mask_random_and_kept(mask, random):
  objective = mlm(objective__mask_token_rate=mask, objective__random_token_rate=random)
  t = objective.tokenizer
  counts, drawn = np.zeros(3), []
  for _, f in corrupted(objective, 200, 400):
    now = f['inputs'][f['target_positions']]
    masked, kept = now == t.mask_id, now == f['targets']
    counts += [masked.sum(), (~masked & ~kept).sum(), kept.sum()]
    drawn += now[~masked & ~kept].tolist()
  # One of the 256 random tokens is the token itself.
  expected = counts.sum() * np.array([mask, random * 255 / 256, 1 - mask - random / 256 * 255])
  assert (counts[expected == 0] == 0).all()
  possible = expected > 0
  if possible.sum() > 1:
    assert scipy.stats.chisquare(counts[possible], expected[possible]).pvalue > LEVEL
  if drawn:
    assert not t.special_ids & set(drawn)
    ids = np.bincount(drawn, minlength=t.vocab_size)[max(t.special_ids) + 1 :]
    assert scipy.stats.chisquare(ids).pvalue > LEVEL


def test_every_position_is_selected_equally_often():
  positions = [p for _, f in corrupted(mlm(), 40, 2000) for p in f['target_positions']]
  counts = np.bincount(positions, minlength=42)
  assert counts[0] == counts[41] == 0
  assert scipy.stats.chisquare(counts[1:41]).pvalue > LEVEL


@hypothesis.given(st.integers(1, 60), st.integers(0, 2**32), st.floats(0.01, 0.99))
def test_putting_the_targets_back_gives_the_tokens(n, seed, rate):
  objective = mlm(objective__mask_rate=rate)
  ((tokens, f),) = corrupted(objective, n, 1, seed)
  positions = f['target_positions']
  assert (np.diff(positions) > 0).all()
  assert not objective.tokenizer.special_ids & set(f['targets'].tolist())
  restored = f['inputs'].copy()
  restored[positions] = f['targets']
  np.testing.assert_array_equal(restored, tokens)
  others = np.delete(np.arange(len(tokens)), positions)
  np.testing.assert_array_equal(f['inputs'][others], tokens[others])


def test_special_tokens_may_have_any_ids():
  """Those of a SentencePiece model made elsewhere come after its pieces."""
  names = ('pad', 'eos', 'unk', 'bos', 'cls', 'sep', 'mask')
  ids = {f'{name}_id': number for name, number in zip(names, (0, 1, 2, 3, 50, 51, 52), strict=True)}
  tokenizer = types.SimpleNamespace(
    **ids, special_ids=frozenset(ids.values()), sentinel_ids=(), vocab_size=53
  )
  objective = mlm(tokenizer=tokenizer, objective__random_token_rate=0.2)
  tokens = np.array([50, *range(2, 50), 51], np.int32)
  rng = np.random.default_rng(0)
  found = set()
  for _ in range(300):
    f = objective.corrupt(tokens, rng)
    assert not tokenizer.special_ids & set(f['targets'].tolist())
    found |= set(f['inputs'][f['target_positions']].tolist())
  assert found == {52, *range(4, 50)}


def documents_of_one_token(lengths):
  """Document d is full of token d + 200, so that a token tells where it comes from."""
  return Documents([[200 + d] * n for d, n in enumerate(lengths)])


def pairs(objective, store, times):
  """(A, B, follows, tokens, features) of pieces that became pairs, targets put back."""
  rng, t = np.random.default_rng(0), objective.tokenizer
  for _ in range(times):
    for document in range(store.num_documents):
      f = objective.features(whole(store, document), rng)
      inputs = f['inputs'].copy()
      inputs[f['target_positions']] = f['targets']
      first, second, rest = np.split(inputs, np.flatnonzero(inputs == t.sep_id) + 1)
      assert inputs[0] == t.cls_id and not len(rest)
      types = [0] * len(first) + [1] * len(second)
      np.testing.assert_array_equal(f['token_type_ids'], types)
      assert len(f['nsp_targets']) == 1 and f['nsp_positions'] == 0 and f['nsp_weights'] == 1
      yield first[1:-1], second[:-1], not f['nsp_targets'][0], store.documents[document]


def test_pairs_that_do_not_follow_end_in_another_document():
  store = documents_of_one_token([60, 30, 16, 200])
  others = []
  for first, second, follow, tokens in pairs(mlm(), store, 400):
    if follow:
      np.testing.assert_array_equal(np.concatenate([first, second]), tokens)
    else:
      assert set(first) == set(tokens) and len(set(second)) == 1
      assert second[0] != tokens[0] and 0 < len(second) <= len(tokens) - len(first)
      others.append((tokens[0], second[0]))
    # Neither half is less than a quarter.
    assert len(tokens) // 4 <= len(first) <= len(tokens) - len(tokens) // 4
  _, counts = np.unique(others, axis=0, return_counts=True)
  assert len(counts) == 4 * 3  # Every other document, of each.


def test_half_of_the_pairs_follow():
  objective = mlm()
  piece, rng = whole(documents_of_one_token([20, 20])), np.random.default_rng(0)
  follows = [objective.features(piece, rng)['nsp_targets'][0] == 0 for _ in range(6000)]
  assert scipy.stats.binomtest(sum(follows), len(follows), 0.5).pvalue > LEVEL


def test_a_negative_may_begin_anywhere_in_its_document():
  objective = mlm()
  store = Documents([np.full(32, 300), np.arange(200, 260)])
  starts = set()
  for first, second, follow, _ in pairs(objective, store, 1500):
    if not follow and first[0] == 300:
      np.testing.assert_array_equal(np.diff(second), 1)
      assert second[-1] < 260
      starts.add(second[0])
  assert starts >= set(range(200, 240))


def test_a_short_piece_is_no_pair():
  objective = mlm()
  store = random_documents(objective.tokenizer, [masked_lm.MIN_PAIR - 1, 40])
  f = objective.features(whole(store), np.random.default_rng(0))
  assert len(f['nsp_targets']) == len(f['nsp_weights']) == len(f['nsp_positions']) == 0
  assert (f['inputs'] == objective.tokenizer.sep_id).sum() == 1 and not f['token_type_ids'].any()


def test_without_pairs_the_whole_piece_is_read():
  objective = mlm(objective__next_sentence=False)
  store = random_documents(objective.tokenizer, [50])
  f = objective.features(whole(store), np.random.default_rng(0))
  assert not [key for key in f if key.startswith('nsp')] and objective.terms == ('mlm_loss',)
  inputs = f['inputs'].copy()
  inputs[f['target_positions']] = f['targets']
  np.testing.assert_array_equal(inputs[1:-1], store.documents[0])


def test_a_single_document_has_no_negatives():
  objective = mlm()
  store = random_documents(objective.tokenizer, [60])
  rng = np.random.default_rng(0)
  with pytest.raises(UserError, match=r'config\.objective\.next_sentence'):
    for _ in range(30):
      objective.features(whole(store), rng)


@hypothesis.given(
  st.lists(st.integers(0, 150), min_size=2, max_size=15).filter(lambda n: min(n[:2]) > 0),
  st.integers(8, 70),
  st.sampled_from([0.05, 0.15, 0.5, 0.9]),
  st.booleans(),
)
def test_any_mixture_of_documents_fits(lengths, max_length, rate, next_sentence):
  objective = mlm(
    data__max_length=max_length,
    objective__mask_rate=rate,
    objective__next_sentence=next_sentence,
  )
  store = random_documents(objective.tokenizer, lengths)
  batch = batch_of(objective, store)
  assert batch['inputs'].shape[1] == max_length
  # Targets still lie where their tokens were, behind whatever was packed before them.
  rows = np.arange(len(batch['inputs']))[:, None]
  real = batch['target_weights'] > 0
  segments = batch['segment_ids'][rows, batch['target_positions']]
  assert (segments[real] > 0).all()
  starts = batch['positions'][rows, batch['nsp_positions']] if next_sentence else np.zeros(1)
  assert (starts == 0).all()
  if next_sentence:
    heads = batch['inputs'][rows, batch['nsp_positions']][batch['nsp_weights'] > 0]
    assert (heads == objective.tokenizer.cls_id).all()


def test_rows_are_nearly_full():
  objective = mlm(data__max_length=128)
  store = random_documents(byte_tokenizer(), np.random.default_rng(0).integers(100, 400, 50))
  used = [sum(len(f['inputs']) for f in row) for row in rows_of(objective, store)]
  assert np.mean(used[:-1]) > 0.95 * 128


def test_masks_are_drawn_anew_each_epoch_and_the_same_in_the_same():
  objective = mlm(objective__next_sentence=False)
  piece = packing.Piece(random_documents(objective.tokenizer, [60]), 0, 0, 60)
  rng = ItemRng(0, 0)
  first, again, later = (objective.features(piece, rng.at(e, 3, 0)) for e in (0, 0, 1))
  np.testing.assert_array_equal(first['inputs'], again['inputs'])
  assert first['target_positions'].tolist() != later['target_positions'].tolist()
