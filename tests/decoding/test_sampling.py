"""Filters of sampling, draws and n-grams, against numpy and against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from flaxlm.decoding.sampling import Sampling, candidates, choose, without_repeats

VOCAB = 50
LEVEL = 1e-4  # Seeds are fixed: a test of a statistic fails at this level or never.


def filtered(scores, sampling):
  """Logits [B, V] with -inf where a token is left out."""
  scores = np.asarray(scores, np.float32)
  kept, ids = map(np.asarray, candidates(jnp.asarray(scores), sampling))
  if ids.ndim == 0:  # None: they stand in their order
    return kept
  result = np.full(scores.shape, -np.inf, np.float32)
  np.put_along_axis(result, ids, kept, -1)
  return result


def reference_filter(scores, top_k, top_p, min_p=0.0):
  """Which tokens stay: float64, one row at a time, by sorting."""
  order = np.argsort(-scores, kind='stable')
  kept = order[:top_k] if top_k else order
  p = np.exp(scores[kept].astype(np.float64))
  before = np.cumsum(p / p.sum()) - p / p.sum()
  if top_p < 1:
    kept = kept[(before < top_p) | (np.arange(len(kept)) == 0)]
  p = np.exp(scores[kept].astype(np.float64))
  kept = kept[p >= min_p * p.max()]
  return np.isin(np.arange(len(scores)), kept)


@pytest.mark.parametrize('top_k', [0, 1, 7, 1000])
@pytest.mark.parametrize('top_p', [1.0, 0.5, 1e-6])
@pytest.mark.parametrize('min_p', [0.0, 0.1])
def test_filters_against_numpy(top_k, top_p, min_p, temperature=0.3):
  scores = np.random.default_rng(top_k).normal(size=(40, VOCAB)).astype(np.float32) * 2
  sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
  found = filtered(scores, sampling)
  expected = np.stack([reference_filter(row / temperature, top_k, top_p, min_p) for row in scores])
  np.testing.assert_array_equal(np.isfinite(found), expected)
  np.testing.assert_allclose(found[expected], (scores / temperature)[expected], rtol=1e-6)


def test_tokens_are_drawn_with_their_probabilities():
  scores = np.array([1.0, 2.0, 0.5, -1.0, 1.5, -3.0], np.float32)
  sampling = Sampling(temperature=0.7, top_k=5, top_p=0.97)
  times = 20000
  keys = jax.random.split(jax.random.key(0), times)
  tokens = np.asarray(
    jax.jit(choose, static_argnums=1)(jnp.broadcast_to(scores, (times, 6)), sampling, keys)
  )
  kept = reference_filter(scores / 0.7, 5, 0.97)
  assert kept.sum() == 4
  p = np.where(kept, np.exp(scores.astype(np.float64) / 0.7), 0)
  counts = np.bincount(tokens, minlength=6)
  assert not counts[~kept].any()
  assert scipy.stats.chisquare(counts[kept], times * p[kept] / p.sum()).pvalue > LEVEL


@pytest.mark.full
@pytest.mark.parametrize(
  'options', [dict(top_k=7), dict(top_p=0.8), dict(min_p=0.2), dict(top_k=9, top_p=0.9, min_p=0.05)]
)
@pytest.mark.parametrize('temperature', [1.0, 0.6])
def test_filters_against_transformers(options, temperature):
  """Its processors in its own order (GenerationMixin._get_logits_processor)."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  scores = np.random.default_rng(3).normal(size=(200, VOCAB)).astype(np.float32) * 3
  config = transformers.GenerationConfig(do_sample=True, temperature=temperature, **options)
  model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=4, n_head=1))
  config.top_k = options.get('top_k', 0)
  processors = model._get_logits_processor(
    config, input_ids_seq_length=1, encoder_input_ids=None, prefix_allowed_tokens_fn=None,
    logits_processor=[],
  )  # fmt: skip
  theirs = processors(torch.zeros((200, 1), dtype=torch.long), torch.tensor(scores)).numpy()
  ours = filtered(scores, Sampling(temperature=temperature, **options))
  np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))
  assert np.isfinite(ours).mean() < 0.9
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def banned(sequence, size):
  """Tokens that would make an n-gram come twice, by looking at each."""
  seen = {tuple(sequence[i : i + size]) for i in range(len(sequence) - size + 1)}
  tail = tuple(sequence[len(sequence) - size + 1 :]) if size > 1 else ()
  return {v for v in range(4) if (*tail, v) in seen} if len(sequence) >= size - 1 else set()


@pytest.mark.parametrize('size', [1, 2, 3, 5])
def test_repeated_ngrams_are_left_out(size):
  rng = np.random.default_rng(size)
  sequences = rng.integers(0, 4 if size < 3 else 2, (60, 20)).astype(np.int32)
  lengths = rng.integers(1, 21, 60).astype(np.int32)
  scores = rng.normal(size=(60, 4)).astype(np.float32)
  call = jax.jit(without_repeats, static_argnums=3)
  found = np.asarray(call(scores, sequences, lengths, size))
  some = without = 0
  for row, sequence, length in zip(found, sequences, lengths, strict=True):
    expected = banned(sequence[:length].tolist(), size)
    if len(expected) == 4:  # Nothing would be left.
      expected, without = set(), without + 1
    assert set(np.flatnonzero(~np.isfinite(row)).tolist()) == expected
    some += bool(expected)
  assert some > 5
  assert without > 5 or size > 1
  np.testing.assert_array_equal(call(scores, sequences, lengths, 10**10), scores)
