"""Span corruption: nothing is lost, spans have their density and length, any mixture fits."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from objective_setup import batch_of, byte_tokenizer, make, random_documents, rows_of, whole

from flaxlm.errors import UserError
from flaxlm.objectives import span_corruption

LEVEL = 1e-4  # Seeds are fixed: a test of a statistic fails at this level or never.
TOKENIZER = byte_tokenizer(600)


def t5(**changes):
  return make('span_corruption', 'encoder_decoder', TOKENIZER, **changes)


def spans_of(ids):
  """[..., sentinel, ..., sentinel, ..., EOS] -> what stands around each sentinel, and those."""
  assert ids[-1] == TOKENIZER.eos_id and (ids[:-1] != TOKENIZER.eos_id).all()
  ids = ids[:-1]
  places = np.flatnonzero(np.isin(ids, TOKENIZER.sentinel_ids))
  parts = np.split(ids, places)
  return [parts[0].tolist(), *(part[1:].tolist() for part in parts[1:])], ids[places].tolist()


def merged(inputs, targets):
  """The text that a corrupted pair stands for."""
  kept, marks = spans_of(inputs)
  noise, same_marks = spans_of(targets)
  assert marks == same_marks == list(TOKENIZER.sentinel_ids[: len(marks)])
  assert noise[0] == kept[-1] == []
  assert all(kept[:-1]) and all(noise[1:])
  return [*itertools.chain(*(k + n for k, n in zip(kept[:-1], noise[1:], strict=True)))]


densities = st.sampled_from([0.01, 0.15, 0.5, 0.89])
mean_lengths = st.sampled_from([1.0, 3.0, 10.0, 80.0])


@hypothesis.given(st.integers(2, 200), densities, mean_lengths, st.integers(0, 2**32))
def test_merging_input_and_target_gives_the_tokens(n, density, mean_length, seed):
  objective = t5(objective__noise_density=density, objective__mean_span_length=mean_length)
  tokens = random_documents(TOKENIZER, [n], seed).documents[0]
  inputs, targets = objective.corrupt(tokens, np.random.default_rng(seed))
  assert inputs.dtype == targets.dtype == np.int32
  assert merged(inputs, targets) == tokens.tolist()
  assert (len(inputs), len(targets)) == objective.stream_lengths(n)


@pytest.mark.parametrize('density, mean_length', [(0.15, 3.0), (0.5, 10.0)])
def test_noise_has_its_density_and_mean_length(density, mean_length):
  objective = t5(objective__noise_density=density, objective__mean_span_length=mean_length)
  n = 405
  tokens = random_documents(TOKENIZER, [n]).documents[0]
  noise, _ = spans_of(objective.corrupt(tokens, np.random.default_rng(0))[1])
  total = sum(map(len, noise))
  # Both are rounded to whole tokens and whole spans.
  assert abs(total - density * n) <= 0.5
  assert abs(total / mean_length - len(noise[1:])) <= 0.5


def test_every_way_to_place_the_spans_is_equally_likely():
  """Five tokens of noise in two spans among six kept ones: 4 * 5 ways."""
  objective = t5(objective__noise_density=5 / 11, objective__mean_span_length=2.5)
  tokens = random_documents(TOKENIZER, [11]).documents[0]
  rng = np.random.default_rng(0)
  found = {}
  for _ in range(6000):
    inputs, targets = objective.corrupt(tokens, rng)
    kept, noise = spans_of(inputs)[0], spans_of(targets)[0]
    key = (*map(len, kept[:-1]), *map(len, noise[1:]))
    found[key] = found.get(key, 0) + 1
  ways = {(a, 6 - a, b, 5 - b) for a in range(1, 6) for b in range(1, 5)}
  assert set(found) == ways
  assert scipy.stats.chisquare(list(found.values())).pvalue > LEVEL


@hypothesis.given(
  st.lists(st.integers(0, 150), min_size=1, max_size=12).filter(lambda n: max(n) > 1),
  st.integers(8, 70),
  densities,
  mean_lengths,
)
def test_any_mixture_of_documents_fits(lengths, max_length, density, mean_length):
  objective = t5(
    data__max_length=max_length,
    objective__noise_density=density,
    objective__mean_span_length=mean_length,
  )
  store = random_documents(TOKENIZER, lengths)
  batch = batch_of(objective, store)
  assert batch['encoder_inputs'].shape[1] == max_length
  # Both sides of an item have its segment id.
  for encoder, decoder in zip(
    batch['encoder_segment_ids'], batch['decoder_segment_ids'], strict=True
  ):
    assert set(encoder[encoder > 0]) == set(decoder[decoder > 0])


@hypothesis.given(st.lists(st.integers(2, 120), min_size=1, max_size=8))
def test_an_epoch_reads_every_token_once(lengths):
  """But for pieces of a single token, of which nothing can be kept."""
  objective = t5()
  store = random_documents(TOKENIZER, lengths)
  items = [item for row in rows_of(objective, store) for item in row]
  tokens = [t for item in items for t in merged(item['encoder_inputs'], item['targets'])]
  everything = np.concatenate(store.documents).tolist()
  rows = iter(everything)
  assert all(token in rows for token in tokens)  # A subsequence.
  assert len(everything) - len(tokens) <= len(lengths)


def test_the_decoder_reads_its_targets_one_late():
  objective = t5()
  f = objective.features(whole(random_documents(TOKENIZER, [50])), np.random.default_rng(0))
  assert f['decoder_inputs'][0] == TOKENIZER.bos_id
  np.testing.assert_array_equal(f['decoder_inputs'][1:], f['targets'][:-1])
  assert (f['target_weights'] == 1).all() and f['targets'][-1] == TOKENIZER.eos_id


def test_rows_are_nearly_full_on_both_sides():
  objective = t5(data__max_length=128)
  store = random_documents(TOKENIZER, np.random.default_rng(0).integers(300, 900, 50))
  batch = batch_of(objective, store)
  for side, share in (('encoder', 0.95), ('decoder', 0.9)):
    assert (batch[f'{side}_segment_ids'][:-1] > 0).mean() > share


def test_too_few_sentinels_are_named():
  with pytest.raises(UserError, match=r'config\.tokenizer\.sentinels.*need 3 sentinels'):
    make('span_corruption', 'encoder_decoder', byte_tokenizer(2))
  make('span_corruption', 'encoder_decoder', byte_tokenizer(3))


@pytest.mark.parametrize('length', [4, 12])
def test_a_decoder_row_may_be_limited(length):
  batch = batch_of(t5(data__max_target_length=length), random_documents(TOKENIZER, [500, 40]))
  assert batch['targets'].shape[1] == length
  assert batch['target_weights'].any(axis=1).mean() > 0.9
  assert (batch['encoder_segment_ids'] > 0).mean() < 0.8  # It limits the encoder's rows too.


def test_bounds_by_hand():
  rng = np.random.default_rng(0)
  assert span_corruption._bounds(1, 1, rng).tolist() == [0, 1]
  assert span_corruption._bounds(4, 4, rng).tolist() == [0, 1, 2, 3, 4]
