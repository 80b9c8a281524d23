"""Decoding: the cache changes nothing, neighbours change nothing, tokens are drawn as promised."""

import types

import jax
import numpy as np
import pytest
import scipy.stats
from decoding_setup import (
  GREEDY,
  LONGEST,
  draw,
  forward,
  full_logits,
  padded,
  prompts_of,
  run,
  setup,
  sources_of,
)

from flaxlm.config.transformer import POSITIONS
from flaxlm.data.packing import Stream
from flaxlm.decoding import cache as caches
from flaxlm.decoding import generate as generation
from flaxlm.decoding.cache import Reader, Source
from flaxlm.decoding.generate import generate
from flaxlm.decoding.sampling import Sampling
from flaxlm.models.scores import logits

LEVEL = 1e-4  # Seeds are fixed: a test of a statistic fails at this level or never.

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
INVARIANT = list(CASES)
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
    segments, layers = batch['encoder_segment_ids'], config.decoder_layers
    memory = caches.encode(model, params, Source(batch['encoder_inputs'], segments))
  call = jax.jit(caches.call, static_argnums=0)
  cache = caches.empty(config, layers, len(rows), LONGEST)
  found = []
  for start in (0, chunk):
    inputs = np.stack([row[start : start + chunk] for row in rows])
    positions = np.broadcast_to(np.arange(start, start + chunk), inputs.shape)
    output, cache = call(model, params, inputs, positions, cache, segments, memory)
    found.append(np.asarray(logits(output)))
    memory = None  # The cache has what the layers made of it.
  return np.concatenate(found, axis=1)


SAMPLED = Sampling(12, 1.0, top_k=20, top_p=0.9, seed=3)


@pytest.mark.parametrize(
  'family, sampling', [('decoder', GREEDY), ('decoder', SAMPLED), ('encoder_decoder', SAMPLED)]
)
def test_neighbours_and_padding_change_nothing(family, sampling):
  """Another number of rows, other widths of prompts, of the encoder's rows and of the cache."""
  check_neighbours(family, sampling, position='learned')


@pytest.mark.full
@pytest.mark.parametrize('family, position, changes', INVARIANT)
def test_neighbours_change_nothing_of_any_family(family, position, changes):
  check_neighbours(family, GREEDY, position=position, **changes)


def check_neighbours(family, sampling, **changes):
  model, params = setup(family, **changes)
  first = draw([4])
  alone = run(family, model, params, first, sampling)
  together = run(family, model, params, first + draw([40, 1, 9], seed=5), sampling)
  np.testing.assert_array_equal(together[0], alone[0])


def test_rows_draw_for_themselves():
  """A row's numbers come from its seed and number, wherever it stands."""
  model, params = setup('decoder')
  prompts = prompts_of(draw([4, 9, 2]))
  draws = [(7, 0), (8, 3), (7, 5)]
  reader = Reader.of(model, params)
  found = generate(reader, prompts, Sampling(8), draws)
  back = generate(reader, prompts[::-1], Sampling(8), draws[::-1])[::-1]
  other = generate(reader, prompts, Sampling(8), [(7, 0), (9, 3), (7, 6)])
  for b in range(3):
    np.testing.assert_array_equal(found[b].tokens, back[b].tokens)
    assert (found[b].tokens == other[b].tokens).all() == (b == 0)


def test_one_program_for_a_bucket():
  """Other prompts, lengths, seeds and numbers of new tokens compile nothing."""
  model, params = setup('decoder', position='alibi')
  reader = Reader.of(model, params)
  before = generation._first._cache_size(), generation._advance._cache_size()
  for sizes, new, seed in (([3, 7], 9, 0), ([20, 1], 5, 1), ([8, 8], 12, 2)):
    generate(reader, prompts_of(draw(sizes)), Sampling(new, seed=seed))
  after = generation._first._cache_size(), generation._advance._cache_size()
  assert after == (before[0] + 1, before[1] + 1)


def test_memory_is_projected_once():
  """After the first token nothing reads how the layers project the encoder's output."""
  model, params = setup('encoder_decoder')
  prompts, sources = draw([3, 1]), draw([7, 20], seed=9)
  whole = run('encoder_decoder', model, params, prompts)
  reader = Reader.of(model, params)
  rows = [
    generation._Row(prompt, (0, b), prompt.inputs, np.zeros(0, np.int32))
    for b, prompt in enumerate(prompts_of(prompts, sources_of('encoder_decoder', sources)))
  ]
  state = generation._start(reader, rows, 12, GREEDY)
  for layer in reader.params['trunk']['decoder']['each_layer']:
    for name in ('key', 'value'):
      layer['cross_attention'][name]['kernel'] *= np.nan
  state = generation._advance(model, generation._static(GREEDY), None, reader.params, state, 12)
  for b, new in enumerate(generation._new(state, rows, 12)):
    np.testing.assert_array_equal(new, whole[b])


def test_stopped_rows_keep_what_they_are_told_to():
  """A row that stops is cut where its stop says; the others go on."""
  model, params = setup('decoder')
  prompts = draw([4, 9])
  whole = run('decoder', model, params, prompts, Sampling(40, 0.0))
  looks = []

  def stop(row, tokens):
    looks.append(len(tokens))
    return 19 if row == 1 and len(tokens) >= 20 else None

  sampling = Sampling(40, 0.0)
  found = generate(Reader.of(model, params), prompts_of(prompts), sampling, stop=stop)
  np.testing.assert_array_equal(found[0].tokens, whole[0])
  np.testing.assert_array_equal(found[1].tokens, whole[1][:19])
  assert [f.finish for f in found] == ['length', 'stop']
  assert len(looks) < 10  # Not at every token.


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
  found = generate(Reader.of(model, params), prompts_of(prompts, sources), sampling)
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
    assert found[b].tokens.tolist() == expected


def test_what_was_trained_on_longer_rows_reads_as_much(monkeypatch):
  """Without a table of positions, rows may be longer than `model.max_length`."""
  seen = []

  def ended(reader, rows, steps, sampling, stop):
    seen.append((len(rows[0].read), steps))
    rows[0].finish = 'length'

  monkeypatch.setattr(generation, '_run', ended)
  rows = types.SimpleNamespace(streams={'inputs': Stream(LONGEST, ('inputs', 'targets'))})
  for objective in (None, rows):
    reader = Reader.of(*setup('decoder', max_length=16), objective)
    generate(reader, prompts_of(draw([20])), GREEDY)
  assert seen == [(8, 8), (20, 12)] and reader.longest == LONGEST


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
