"""Denoising: the decoder rebuilds the text, each corruption does what it says and at its rate."""

import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from objective_setup import Documents, batch_of, byte_tokenizer, make, random_documents, whole

from flaxlm.objectives import denoising

LEVEL = 1e-4  # Seeds are fixed: a test of a statistic fails at this level or never.
TOKENIZER = byte_tokenizer(0)
FIRST = max(TOKENIZER.special_ids) + 1
NONE = dict.fromkeys(
  ('infill_rate', 'permute_rate', 'rotate_rate', 'delete_rate', 'mask_rate'), 0.0
)


@functools.cache
def bart(**rates):
  """Only the corruptions that are named."""
  fields = {f'objective__{name}': value for name, value in (NONE | rates).items()}
  return make('denoising', 'encoder_decoder', TOKENIZER, **fields)


def distinct(n):
  """Tokens of which no two are equal and none ends a sentence."""
  stop = FIRST + 128  # Beyond ASCII.
  return np.arange(stop, stop + n, dtype=np.int32)


rates = st.sampled_from([0.0, 0.3, 1.0])


@hypothesis.given(
  st.integers(1, 120),
  rates,
  rates,
  rates,
  rates,
  rates,
  st.sampled_from([1.0, 3.0, 9.0]),
  st.integers(0, 2**32),
)
def test_the_decoder_rebuilds_the_text_and_the_encoder_reads_no_more(
  n, infill, permute, rotate, delete, mask, mean, seed
):
  objective = bart(
    infill_rate=infill, permute_rate=permute, rotate_rate=rotate, delete_rate=delete,
    mask_rate=mask, mean_span_length=mean,
  )  # fmt: skip
  store = random_documents(TOKENIZER, [n], seed)
  f = objective.features(whole(store), np.random.default_rng(seed))
  t = TOKENIZER
  assert f['targets'].tolist() == [t.bos_id, *store.documents[0], t.eos_id]
  assert f['decoder_inputs'].tolist() == [t.eos_id, *f['targets'][:-1]]
  assert (f['target_weights'] == 1).all()
  inside = f['encoder_inputs'][1:-1]
  assert f['encoder_inputs'][0] == t.bos_id and f['encoder_inputs'][-1] == t.eos_id
  assert len(inside) <= n
  # What the encoder reads, but for masks, is of the text, each token at most as often.
  left, have = np.unique(inside[inside != t.mask_id], return_counts=True)
  tokens, counts = np.unique(store.documents[0], return_counts=True)
  there = dict(zip(tokens.tolist(), counts.tolist(), strict=True))
  assert all(count <= there[token] for token, count in zip(left.tolist(), have, strict=True))


def test_without_corruption_nothing_changes():
  tokens = distinct(30)
  np.testing.assert_array_equal(bart().corrupt(tokens, np.random.default_rng(0)), tokens)


def gaps(tokens, found):
  """Of an infilled text of distinct tokens: how many tokens each run of masks stands for."""
  lengths, masks, at = [], 0, 0
  for token in [*found.tolist(), None]:
    if token == TOKENIZER.mask_id:
      masks += 1
      continue
    here = len(tokens) if token is None else int(token - tokens[0])
    assert here >= at
    assert masks or here == at  # Nothing is lost without a mask.
    if masks:
      lengths.append((masks, here - at))
    masks, at = 0, here + 1
  return lengths


@hypothesis.given(
  st.integers(1, 120), rates, st.sampled_from([1.0, 3.0, 20.0]), st.integers(0, 2**32)
)
def test_infilling_keeps_the_rest_in_order_with_masks_where_tokens_are_gone(n, rate, mean, seed):
  tokens = distinct(n)
  objective = bart(infill_rate=rate, mean_span_length=mean)
  found = objective.infill(tokens, np.random.default_rng(seed))
  gone = sum(length for _, length in gaps(tokens, found))
  assert int(rate * n) <= gone <= int(rate * n) + 1
  assert len(found) <= n and found.dtype == np.int32


def test_infilled_spans_are_poisson():
  """30 % of the tokens; lengths of runs of one mask, where spans are far apart, are Poisson."""
  objective = bart(infill_rate=0.3)
  shares, rng = [], np.random.default_rng(0)
  for _ in range(500):
    tokens = distinct(101)
    shares.append(sum(n for _, n in gaps(tokens, objective.infill(tokens, rng))) / 101)
  assert set(np.round(np.array(shares) * 101)) == {30, 31}
  assert abs(np.mean(shares) - 0.3) < 0.001
  lengths = denoising._span_lengths(60_000, 3.0, np.random.default_rng(0))
  counts = np.bincount(np.minimum(lengths, 10), minlength=11)
  chances = scipy.stats.poisson(3.0).pmf(np.arange(11))
  chances[10] = 1 - chances[:10].sum()
  assert scipy.stats.chisquare(counts, counts.sum() * chances).pvalue > LEVEL
  single = []
  for _ in range(1000):
    tokens = distinct(120)
    single += [n for masks, n in gaps(tokens, bart(infill_rate=0.05).infill(tokens, rng)) if masks]
  assert min(single) == 0 and max(single) >= 6


def test_an_empty_span_may_stand_anywhere():
  objective, rng = bart(infill_rate=0.3), np.random.default_rng(0)
  places = set()
  for _ in range(3000):
    tokens = distinct(12)
    found = objective.infill(tokens, rng)
    places |= {i for i, token in enumerate(found) if token == TOKENIZER.mask_id}
    # Nothing is gone before the first token, or behind the last, but a mask stands there.
    places |= {'first'} if found[1] == tokens[0] else set()
    places |= {'last'} if found[-2] == tokens[-1] else set()
  assert places >= {*range(9), 'first', 'last'}


@pytest.mark.parametrize('rate', [0.2, 0.55, 1.0])
def test_deletion_and_masking_have_their_rates(rate):
  rng, n = np.random.default_rng(0), 97
  tokens = distinct(n)
  kept, masked, where = [], [], np.zeros(n)
  for _ in range(400):
    found = bart(delete_rate=rate).corrupt(tokens, rng)
    assert (np.diff(found) > 0).all()
    kept.append(n - len(found))
    found = bart(mask_rate=rate).corrupt(tokens, rng)
    assert len(found) == n
    changed = found != tokens
    assert (found[changed] == TOKENIZER.mask_id).all()
    masked.append(changed.sum())
    where += changed
  for counts in (kept, masked):
    assert set(counts) <= {int(rate * n), int(rate * n) + 1}
    assert abs(np.mean(counts) - rate * n) < 0.15
  if rate < 1:
    assert scipy.stats.chisquare(where).pvalue > LEVEL


def test_rotation_begins_anywhere():
  tokens, rng = distinct(10), np.random.default_rng(0)
  firsts, turned = [], 0
  for _ in range(4000):
    found = bart(rotate_rate=0.5).corrupt(tokens, rng)
    first = int(found[0] - tokens[0])
    np.testing.assert_array_equal(found, np.roll(tokens, -first))
    firsts.append(first)
    turned += first > 0
  assert abs(turned / 4000 - 0.45) < 0.03
  assert scipy.stats.chisquare(np.bincount(firsts, minlength=10)[1:]).pvalue > LEVEL


def test_sentences_change_places_and_stay_whole():
  text = 'One is. Two are here! Is three? Four'
  tokens, rng = TOKENIZER.encode(text), np.random.default_rng(0)
  sentences = ['One is.', ' Two are here!', ' Is three?', ' Four']
  orders = {}
  for _ in range(2400):
    found = TOKENIZER.decode(bart(permute_rate=1.0).corrupt(tokens, rng))
    order = tuple(sorted(range(4), key=lambda i: found.index(sentences[i])))
    assert ''.join(sentences[i] for i in order) == found
    orders[order] = orders.get(order, 0) + 1
  assert len(orders) == 24 and scipy.stats.chisquare(list(orders.values())).pvalue > LEVEL


def test_a_share_of_the_sentences_changes_places():
  text = ''.join(f'{letter}.' for letter in 'abcdefghij')
  tokens, rng = TOKENIZER.encode(text), np.random.default_rng(0)
  moved = []
  for _ in range(500):
    found = TOKENIZER.decode(bart(permute_rate=0.3).corrupt(tokens, rng))
    moved.append(sum(a != b for a, b in zip(text[::2], found[::2], strict=True)))
  assert set(moved) == {0, 2, 3}


@hypothesis.given(
  st.lists(st.integers(0, 150), min_size=1, max_size=12).filter(any), st.integers(8, 70)
)
def test_any_mixture_of_documents_fits(lengths, max_length):
  objective = make('denoising', 'encoder_decoder', TOKENIZER, data__max_length=max_length)
  store = random_documents(TOKENIZER, lengths)
  batch = batch_of(objective, store)
  inside = (batch['targets'] != TOKENIZER.bos_id) & (batch['targets'] != TOKENIZER.eos_id)
  text = batch['targets'][inside & (batch['target_weights'] > 0)]
  np.testing.assert_array_equal(text, np.concatenate(store.documents))


def test_a_decoder_row_may_be_limited():
  objective = make('denoising', 'encoder_decoder', TOKENIZER, data__max_target_length=20)
  batch = batch_of(objective, Documents([distinct(100)]))
  assert batch['targets'].shape[1] == 20 and batch['encoder_inputs'].shape[1] == 64
