"""Decoding: the cache changes nothing, neighbours change nothing, tokens are drawn as promised."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from flaxlm import decoding
from flaxlm.config.transformer import POSITIONS, TransformerConfig
from flaxlm.config.tree import load_module
from flaxlm.decoding import Sampling
from flaxlm.models.model import Model
from flaxlm.objectives import next_token

VOCAB = 50
# No multiple of the bucket, so that the cap on cached slots is reached.
LONGEST = 60
GREEDY = Sampling(max_new_tokens=12, temperature=0.0)
LEVEL = 1e-4  # Seeds are fixed: a test of a statistic fails at this level or never.


@functools.cache
def setup(family, **changes):
  """(model, parameters) with random leaves: biases and norms are away from 0 and 1."""
  defaults = dict(
    name=family, num_layers=2, emb_dim=16, num_heads=4, num_kv_heads=2, max_length=LONGEST,
    vocab_size=VOCAB, init_std=0.3, position='rope', scan_layers=True,
  )  # fmt: skip
  config = TransformerConfig(**(defaults | changes))
  model = Model(load_module('flaxlm.models', family).Trunk(config), next_token.Head(config))
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), padded(family, [[1]], [[1]])))
  rng = np.random.default_rng(0)
  draw = lambda leaf: (rng.normal(size=leaf.shape) * 0.4).astype(np.float32)
  return model, jax.tree.map(draw, shapes['params'])


def padded(family, rows, sources=None, length=LONGEST):
  """A batch of rows that are read in one piece."""

  def stream(prefix, rows):
    inputs, segments = np.zeros((2, len(rows), length), np.int32)
    for b, row in enumerate(rows):
      inputs[b, : len(row)] = row
      segments[b, : len(row)] = 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), inputs.shape)
    names = ('inputs', 'segment_ids', 'positions')
    values = (inputs, segments, positions)
    return {prefix + name: value for name, value in zip(names, values, strict=True)}

  if family == 'encoder_decoder':
    return stream('encoder_', sources) | stream('decoder_', rows)
  return stream('', rows)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch):
  return decoding.logits(model.apply({'params': params}, batch)[0])


def full_logits(model, params, rows, sources=None):
  """Logits [B, L, V] by one forward pass without a cache."""
  family = model.trunk.config.name
  return np.asarray(forward(model, params, padded(family, rows, sources)))


def draw(sizes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(1, VOCAB, n).astype(np.int32) for n in sizes]


def sources_of(family, prompts):
  lengths = [7, 40, 2, 11]
  return draw(lengths[: len(prompts)], seed=9) if family == 'encoder_decoder' else None


def run(family, model, params, prompts, sampling=GREEDY, eos_id=None):
  sources = sources_of(family, prompts)
  return decoding.generate(model, params, prompts, sampling, eos_id, sources)


T5 = dict(scale_attention=False, num_decoder_layers=1, norm='rmsnorm', scale_tied_logits=True)
LLAMA = dict(norm='rmsnorm', gated_mlp=True, activation='silu', use_bias=False, num_kv_heads=1)
MODERN = dict(
  num_layers=4, window=4, global_every=2, first_attention_norm=False, qk_norm=True,
  attention_softcap=3.0, logit_softcap=2.0, local_rope_theta=100.0,
)  # fmt: skip
# Every scheme once, with what it usually comes with; the other products are for test-full.
CASES = [
  ('decoder', 'rope', LLAMA),
  ('decoder', 'learned', dict(scan_layers=False, tie_embeddings=False)),
  ('decoder', 'alibi', dict(num_kv_heads=None)),
  ('decoder', 'none', {}),
  # Slots are positions, so the window holds in the cache; scanned with a remainder.
  ('decoder', 'rope', MODERN),
  ('encoder_decoder', 't5_bias', T5),
  ('encoder_decoder', 'sinusoidal', dict(norm_placement='post', scale_embeddings=True)),
]
SEEN = {case[:2] for case in CASES}
CASES += [
  pytest.param(family, position, {}, marks=pytest.mark.full)
  for family in ('decoder', 'encoder_decoder')
  for position in POSITIONS
  if (family, position) not in SEEN
]


@pytest.mark.parametrize('family, position, changes', CASES)
def test_cached_equals_full(family, position, changes):
  """Token for token, and logits to float32's rounding over the depth of the model."""
  model, params = setup(family, position=position, **changes)
  prompts = draw([3, 17, 1])
  sources = sources_of(family, prompts)
  new = run(family, model, params, prompts)
  assert [len(tokens) for tokens in new] == [12] * 3
  rows = [np.concatenate(pair) for pair in zip(prompts, new, strict=True)]
  reference = full_logits(model, params, rows, sources)
  for b, (prompt, tokens) in enumerate(zip(prompts, new, strict=True)):
    chosen = reference[b, len(prompt) - 1 : len(prompt) + 11]
    np.testing.assert_array_equal(tokens, chosen.argmax(-1))
  cached = cached_logits(model, params, rows, sources, chunk=6)
  for b in range(3):
    expected = reference[b, :12]
    np.testing.assert_allclose(cached[b], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def cached_logits(model, params, rows, sources, chunk):
  """[B, 2 * chunk, V]: some tokens at once, then others that find those in the cache."""
  config = model.trunk.config
  memory = segments = None
  layers = config.num_layers
  if sources is not None:
    batch = padded(config.name, rows, sources)
    memory = decoding._encode(model, params, batch['encoder_inputs'], batch['encoder_segment_ids'])
    segments, layers = batch['encoder_segment_ids'], config.decoder_layers
  call = jax.jit(decoding.cached_call, static_argnums=0)
  cache = decoding.empty_cache(config, layers, len(rows), LONGEST)
  found = []
  for start in (0, chunk):
    inputs = np.stack([row[start : start + chunk] for row in rows])
    positions = np.broadcast_to(np.arange(start, start + chunk), inputs.shape)
    output, cache = call(model, params, inputs, positions, cache, memory, segments)
    found.append(np.asarray(decoding.logits(output)))
  return np.concatenate(found, axis=1)


SAMPLED = Sampling(12, 1.0, top_k=20, top_p=0.9, seed=3)


@pytest.mark.parametrize(
  'family, sampling', [('decoder', GREEDY), ('decoder', SAMPLED), ('encoder_decoder', SAMPLED)]
)
def test_neighbours_and_padding_change_nothing(family, sampling):
  """Another number of rows, other widths of prompts, of the encoder's rows and of the cache."""
  model, params = setup(family, position='learned')
  first = draw([4])
  alone = run(family, model, params, first, sampling)
  together = run(family, model, params, first + draw([40, 1, 9], seed=5), sampling)
  np.testing.assert_array_equal(together[0], alone[0])


def test_samples_of_a_seed_are_the_same_and_a_prefix_of_longer_ones():
  model, params = setup('decoder')
  prompts = draw([4]) * 3
  sample = lambda n, seed: run('decoder', model, params, prompts, Sampling(n, seed=seed))
  first, again, other, short = sample(12, 1), sample(12, 1), sample(12, 2), sample(5, 1)
  np.testing.assert_array_equal(first, again)
  np.testing.assert_array_equal([row[:5] for row in first], short)
  assert (np.array(first) != other).any(axis=1).all()
  # Rows of the same prompt are different samples.
  assert len({tuple(row) for row in first}) == 3


def test_eos_ends_a_row_and_no_other():
  model, params = setup('decoder')
  prompts = draw([4, 9, 2])
  whole = run('decoder', model, params, prompts)
  eos = int(whole[0][5])
  ended = run('decoder', model, params, prompts, eos_id=eos)
  for tokens, before in zip(ended, whole, strict=True):
    places = np.flatnonzero(before == eos)
    np.testing.assert_array_equal(tokens, before[: places[0]] if len(places) else before)
  assert len(ended[0]) <= 5 and eos not in np.concatenate(ended)


@pytest.mark.parametrize(
  'family', ['decoder', pytest.param('encoder_decoder', marks=pytest.mark.full)]
)
def test_rows_that_outgrow_the_model_go_on_from_their_last_half(family):
  """Against a loop that reads, for each token, all there is or the last half and what followed."""
  longest = 12
  model, params = setup(family, position='learned', max_length=longest)
  prompts = draw([3, 30, 11] if family == 'encoder_decoder' else [3, 30])
  sources = draw([4, 12, 1], seed=9) if family == 'encoder_decoder' else None
  sampling = Sampling(max_new_tokens=31, temperature=0.0)
  found = decoding.generate(model, params, prompts, sampling, None, sources)
  for b, prompt in enumerate(prompts):
    source = None if sources is None else [sources[b]]
    context, expected = list(prompt), []
    for _ in range(31):
      if len(context) >= longest:
        context = context[-(longest // 2) :]
      batch = padded(family, [context], source, longest)
      scores = np.asarray(forward(model, params, batch))
      expected.append(int(scores[0, len(context) - 1].argmax()))
      context.append(expected[-1])
    assert found[b].tolist() == expected


def reference_filter(scores, top_k, top_p):
  """Which tokens stay: float64, one row at a time, by sorting."""
  order = np.argsort(-scores, kind='stable')
  kept = order[:top_k] if top_k else order
  p = np.exp(scores[kept].astype(np.float64))
  before = np.cumsum(p / p.sum()) - p / p.sum()
  if top_p < 1:
    kept = kept[(before < top_p) | (np.arange(len(kept)) == 0)]
  return np.isin(np.arange(len(scores)), kept)


@pytest.mark.parametrize('top_k', [0, 1, 7, 49, 50, 1000])
@pytest.mark.parametrize('top_p', [1.0, 0.9, 0.5, 1e-6])
@pytest.mark.parametrize('temperature', [1.0, 0.3])
def test_filters_against_numpy(top_k, top_p, temperature):
  scores = np.random.default_rng(top_k).normal(size=(40, VOCAB)).astype(np.float32) * 2
  sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
  found = np.asarray(decoding.filtered(jnp.asarray(scores), sampling))
  expected = np.stack([reference_filter(row / temperature, top_k, top_p) for row in scores])
  np.testing.assert_array_equal(np.isfinite(found), expected)
  np.testing.assert_allclose(found[expected], (scores / temperature)[expected], rtol=1e-6)


def test_tokens_are_drawn_with_their_probabilities():
  scores = np.array([1.0, 2.0, 0.5, -1.0, 1.5, -3.0], np.float32)
  sampling = Sampling(temperature=0.7, top_k=5, top_p=0.97)
  times = 20000
  keys = jax.random.split(jax.random.key(0), times)
  choose = jax.jit(decoding.choose, static_argnums=1)
  tokens = np.asarray(choose(jnp.broadcast_to(scores, (times, 6)), sampling, keys))
  kept = reference_filter(scores / 0.7, 5, 0.97)
  assert kept.sum() == 4
  p = np.where(kept, np.exp(scores.astype(np.float64) / 0.7), 0)
  counts = np.bincount(tokens, minlength=6)
  assert not counts[~kept].any()
  assert scipy.stats.chisquare(counts[kept], times * p[kept] / p.sum()).pvalue > LEVEL


def test_generated_text_is_drawn_from_the_model():
  """The first and the second token of many samples, against the probabilities of full passes."""
  model, params = setup('decoder', vocab_size=5)
  times, prompt = 4000, draw([6])[0] % 5
  samples = np.array(run('decoder', model, params, [prompt] * times, Sampling(2, 2.5)))
  softmax = lambda x: np.exp(x / 2.5) / np.exp(x / 2.5).sum()
  p_first = softmax(full_logits(model, params, [prompt])[0, 5])
  expected = np.outer(p_first, np.ones(5))
  for token in range(5):
    expected[token] *= softmax(full_logits(model, params, [[*prompt, token]])[0, 6])
  counts = np.zeros((5, 5))
  np.add.at(counts, (samples[:, 0], samples[:, 1]), 1)
  likely = expected * times > 5
  rest = lambda table: np.append(table[likely], table[~likely].sum() + 1e-9)
  result = scipy.stats.chisquare(rest(counts), rest(expected * times), sum_check=False)
  assert likely.sum() > 5 and result.pvalue > LEVEL
  # The stored table has more rows than there are tokens.
  assert params['trunk']['token']['table'].shape[0] == 128 and samples.max() < 5
