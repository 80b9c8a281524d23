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


# ------------------------------------------------------------------------- words and spans


def words(objective, rng, n):
  """[CLS] n bytes of words, [SEP] more, [SEP], and the number of the word of each (-1: special)."""
  t = objective.tokenizer
  parts, numbers = [[t.cls_id]], [-1]
  for _ in range(2):
    text = ''.join(rng.choice(list('abcdefgh   '), n))
    ids = t.encode(text)
    starts = np.array([c == ' ' for c in text])
    starts[0] = True
    parts += [ids, [t.sep_id]]
    numbers += [*(max(numbers) + np.cumsum(starts)), -1]
  return np.concatenate(parts).astype(np.int32), np.array(numbers)


def selected(objective, n, times, seed=0):
  """(tokens, word numbers, chosen as bool, features) of `times` corruptions."""
  rng = np.random.default_rng(seed)
  for _ in range(times):
    tokens, numbers = words(objective, rng, n)
    f = objective.corrupt(tokens, rng)
    chosen = np.zeros(len(tokens), bool)
    chosen[f['target_positions']] = True
    yield tokens, numbers, chosen, f


@hypothesis.given(
  st.integers(1, 60),
  st.integers(0, 2**32),
  st.floats(0.01, 0.99),
  st.sampled_from(['whole_word', 'span']),
)
def test_words_are_selected_whole_and_never_more_than_the_rate(n, seed, rate, masking):
  objective = mlm(objective__mask_rate=rate, objective__masking=masking)
  ((tokens, numbers, chosen, f),) = selected(objective, n, 1, seed)
  assert not chosen[numbers < 0].any()
  for number in range(numbers.max() + 1):
    assert len(set(chosen[numbers == number])) == 1
  assert chosen.sum() <= int(rate * 2 * n) + 1
  assert (np.diff(f['target_positions']) > 0).all()
  restored = f['inputs'].copy()
  restored[f['target_positions']] = f['targets']
  np.testing.assert_array_equal(restored, tokens)
  np.testing.assert_array_equal(f['inputs'][~chosen], tokens[~chosen])


@pytest.mark.parametrize('masking', ['whole_word', 'span'])
def test_nearly_the_whole_share_is_selected(masking):
  objective = mlm(objective__masking=masking)
  shares = [chosen.mean() for _, _, chosen, _ in selected(objective, 200, 200)]
  assert 0.145 < np.mean(shares) < 0.151


def test_every_word_is_selected_equally_often():
  """Words of one length, so that none is passed over."""
  objective = mlm(objective__masking='whole_word', objective__mask_rate=0.2)
  t = objective.tokenizer
  tokens = np.concatenate([[t.cls_id], t.encode(' abcd' * 20), [t.sep_id]]).astype(np.int32)
  rng = np.random.default_rng(0)
  counts = np.zeros(20)
  for _ in range(2000):
    counts[np.unique((objective.corrupt(tokens, rng)['target_positions'] - 1) // 5)] += 1
  assert counts.sum() == 2000 * 4  # A fifth of 100 tokens is 4 words.
  assert scipy.stats.chisquare(counts).pvalue > LEVEL


def runs_of(chosen):
  """Lengths of the runs of True."""
  edges = np.flatnonzero(np.diff([0, *chosen.astype(int), 0]))
  return (edges[1::2] - edges[::2]).tolist()


def test_span_lengths_are_geometric_and_cut_off():
  """Mean 3.8 words, as SpanBERT reports of p = 0.2 and at most 10."""
  chances = 0.2 * 0.8 ** np.arange(10)
  chances /= chances.sum()
  lengths = masked_lm._span_lengths(50_000, np.random.default_rng(0))
  counts = np.bincount(lengths, minlength=11)[1:]
  assert len(counts) == 10 and abs(lengths.mean() - 3.8) < 0.05
  assert scipy.stats.chisquare(counts, counts.sum() * chances).pvalue > LEVEL
  # In a text of one-token words, where few spans touch or are cut, the runs have these lengths.
  objective = mlm(objective__masking='span', objective__mask_rate=0.02)
  t, rng = objective.tokenizer, np.random.default_rng(1)
  tokens, runs = t.encode(' ' * 5000), []
  for _ in range(100):
    chosen = np.zeros(len(tokens), bool)
    chosen[objective.corrupt(tokens, rng)['target_positions']] = True
    runs += runs_of(chosen)
  assert max(runs) >= 10 and 3.5 < np.mean(runs) < 4.1


def test_tokens_of_a_span_share_their_fate_and_those_of_a_word_do_not():
  for masking, share in (('span', True), ('whole_word', False)):
    objective = mlm(
      objective__masking=masking,
      objective__mask_token_rate=0.5,
      objective__random_token_rate=0.0,
      objective__mask_rate=0.05,
    )
    mixed, masks, total = 0, 0, 0
    for _, _, chosen, f in selected(objective, 150, 300):
      masked = f['inputs'] == objective.tokenizer.mask_id
      parts = np.split(np.arange(len(chosen)), np.flatnonzero(np.diff(chosen.astype(int))) + 1)
      for part in (p for p in parts if chosen[p[0]] and len(p) > 1):
        mixed += len(set(masked[part])) == 2
      masks, total = masks + masked.sum(), total + chosen.sum()
    # Two spans may touch.
    assert mixed < 30 if share else mixed > 300
    assert abs(masks / total - 0.5) < 0.05


def test_a_span_ends_at_a_special_token():
  objective = mlm(objective__masking='span')
  rng = np.random.default_rng(0)
  for _ in range(300):
    tokens, numbers = words(objective, rng, 8)
    positions, spans = objective._select_words(tokens, np.flatnonzero(numbers >= 0), 14, rng)
    for span in range(spans.max() + 1):
      assert (np.diff(positions[spans == span]) == 1).all()


# ------------------------------------------------------------------------------------ pairs


def test_half_of_the_pairs_have_changed_places():
  objective = mlm(objective__pairs='sentence_order')
  assert objective.terms == ('mlm_loss', 'sop_loss')
  store = Documents([np.arange(150, 200)])
  follows = []
  for first, second, follow, tokens in pairs(objective, store, 2000, 'sop'):
    parts = (first, second) if follow else (second, first)
    np.testing.assert_array_equal(np.concatenate(parts), tokens)
    assert len(tokens) // 4 <= min(len(first), len(second))
    follows.append(follow)
  assert scipy.stats.binomtest(sum(follows), len(follows), 0.5).pvalue > LEVEL


def documents_of_one_token(lengths):
  """Document d is full of token d + 200, so that a token tells where it comes from."""
  return Documents([[200 + d] * n for d, n in enumerate(lengths)])


def pairs(objective, store, times, name='nsp'):
  """(A, B, follows, tokens) of pieces that became pairs, targets put back."""
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
      assert f[f'{name}_positions'].tolist() == [0] and f[f'{name}_weights'].tolist() == [1]
      (target,) = f[f'{name}_targets']
      yield first[1:-1], second[:-1], not target, store.documents[document]


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


def test_a_document_without_tokens_is_no_negative():
  objective, rng = mlm(), np.random.default_rng(0)
  piece = whole(random_documents(objective.tokenizer, [40, 0]))
  for _ in range(30):
    f = objective.features(piece, rng)
    assert f['nsp_targets'].tolist() == [0] and len(f['inputs']) == 40 + 3


def test_a_short_piece_is_no_pair():
  objective = mlm()
  store = random_documents(objective.tokenizer, [masked_lm.MIN_PAIR - 1, 40])
  f = objective.features(whole(store), np.random.default_rng(0))
  assert len(f['nsp_targets']) == len(f['nsp_weights']) == len(f['nsp_positions']) == 0
  assert (f['inputs'] == objective.tokenizer.sep_id).sum() == 1 and not f['token_type_ids'].any()


def test_without_pairs_the_whole_piece_is_read():
  objective = mlm(objective__pairs='none')
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
  with pytest.raises(UserError, match=r'config\.objective\.pairs'):
    for _ in range(30):
      objective.features(whole(store), rng)


@pytest.mark.parametrize('pairs', list(masked_lm.PREFIXES))
def test_targets_of_packed_documents_lie_where_their_tokens_were(pairs):
  objective = mlm(
    objective__pairs=pairs, objective__mask_token_rate=1.0, objective__random_token_rate=0.0
  )
  batch = batch_of(objective, random_documents(objective.tokenizer, [9] * 30))
  assert batch['segment_ids'].max() > 1  # Several in a row.
  rows, real = np.arange(len(batch['inputs']))[:, None], batch['target_weights'] > 0
  mask = objective.tokenizer.mask_id
  assert (batch['inputs'][rows, batch['target_positions']][real] == mask).all()
  assert (batch['inputs'] == mask).sum() == real.sum() > 0


@hypothesis.given(
  st.lists(st.integers(0, 150), min_size=2, max_size=15).filter(lambda n: min(n[:2]) > 0),
  st.integers(8, 70),
  st.sampled_from([0.05, 0.15, 0.5, 0.9]),
  st.sampled_from(['token', 'whole_word', 'span']),
  st.sampled_from(list(masked_lm.PREFIXES)),
)
def test_any_mixture_of_documents_fits(lengths, max_length, rate, masking, pairs):
  objective = mlm(
    data__max_length=max_length,
    objective__mask_rate=rate,
    objective__masking=masking,
    objective__pairs=pairs,
  )
  store = random_documents(objective.tokenizer, lengths)
  batch = batch_of(objective, store)
  assert batch['inputs'].shape[1] == max_length
  rows = np.arange(len(batch['inputs']))[:, None]
  real = batch['target_weights'] > 0
  segments = batch['segment_ids'][rows, batch['target_positions']]
  assert (segments[real] > 0).all()
  name = masked_lm.PREFIXES[pairs]
  if name:
    places = batch[f'{name}_positions']
    assert (batch['positions'][rows, places] == 0).all()
    heads = batch['inputs'][rows, places][batch[f'{name}_weights'] > 0]
    assert (heads == objective.tokenizer.cls_id).all()


def test_rows_are_nearly_full():
  objective = mlm(data__max_length=128)
  store = random_documents(byte_tokenizer(), np.random.default_rng(0).integers(100, 400, 50))
  used = [sum(len(f['inputs']) for f in row) for row in rows_of(objective, store)]
  assert np.mean(used[:-1]) > 0.95 * 128


def test_masks_are_drawn_anew_each_epoch_and_the_same_in_the_same():
  objective = mlm(objective__pairs='none')
  piece = packing.Piece(random_documents(objective.tokenizer, [60]), 0, 0, 60)
  rng = ItemRng(0, 0)
  first, again, later = (objective.features(piece, rng.at(e, 3, 0)) for e in (0, 0, 1))
  np.testing.assert_array_equal(first['inputs'], again['inputs'])
  assert first['target_positions'].tolist() != later['target_positions'].tolist()
