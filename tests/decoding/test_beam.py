"""Beam search: equals the enumeration of all texts, a search without a cache, and greedy."""

import itertools

import numpy as np
import pytest
from decoding_setup import draw, forward, padded, prompts_of, run, setup, sources_of

from flaxlm.decoding.beam import Beam, search
from flaxlm.decoding.cache import Reader
from flaxlm.decoding.sampling import Sampling

EOS = 2
FULL = pytest.mark.full


def log_probabilities(model, params, rows, source):
  """float64 [rows, L, V] by full passes."""
  family = model.trunk.config.name
  sources = None if source is None else [source] * len(rows)
  scores = np.asarray(forward(model, params, padded(family, rows, sources)), np.float64)
  scores -= scores.max(-1, keepdims=True)
  return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def penalised(log_p, tokens, alpha):
  return log_p / ((5 + tokens) / 6) ** alpha


@pytest.mark.parametrize(
  'family, alpha',
  [
    ('decoder', 1.0),
    ('encoder_decoder', 0.6),
    pytest.param('decoder', 0.0, marks=FULL),
    pytest.param('decoder', 3.0, marks=FULL),
    pytest.param('encoder_decoder', 2.0, marks=FULL),
  ],
)
def test_all_texts_enumerated(family, alpha):
  """With as many beams as there are texts, n-best is the sorted list of all of them."""
  size, longest, vocab = 40, 4, 3
  model, params = setup(family, vocab_size=vocab)
  prompts = [row % vocab for row in draw([3, 6])]
  sources = sources_of(family, prompts)
  sources = sources and [source % vocab for source in sources]
  found = search(
    Reader.of(model, params), prompts_of(prompts, sources, EOS), Beam(size, longest, alpha)
  )
  words = [w for w in range(vocab) if w != EOS]
  texts = [[*t, EOS] for n in range(longest) for t in itertools.product(words, repeat=n)]
  texts += [list(t) for t in itertools.product(words, repeat=longest)]
  for b, prompt in enumerate(prompts):
    rows = [[*prompt, *text] for text in texts]
    log_p = log_probabilities(model, params, rows, sources and sources[b])
    start = len(prompt)
    totals = [
      sum(log_p[i, start + t - 1, token] for t, token in enumerate(text))
      for i, text in enumerate(texts)
    ]
    scores = [penalised(s, len(text), alpha) for s, text in zip(totals, texts, strict=True)]
    order = np.argsort(-np.array(scores))
    assert len(found[b]) == min(size, len(texts)) == 31
    for hypothesis, i in zip(found[b], order, strict=True):
      np.testing.assert_allclose(hypothesis.score, scores[i], rtol=1e-4)
      np.testing.assert_allclose(hypothesis.log_probability, totals[i], rtol=1e-4)
    best = found[b][0]
    ended = texts[order[0]][-1] == EOS
    assert best.tokens.tolist() == texts[order[0]][: -1 if ended else None]
    assert best.finish == ('eos' if ended else 'length')


def reference(model, params, prompt, source, beam, eos_id):
  """The search as its description says it, with lists and full passes."""
  beams, finished = [([], 0.0)], []
  for n in range(1, beam.max_new_tokens + 1):
    log_p = log_probabilities(model, params, [[*prompt, *text] for text, _ in beams], source)
    ends = [len(prompt) + len(text) - 1 for text, _ in beams]
    grown = [
      (text + [token], total + log_p[i, ends[i], token])
      for i, (text, total) in enumerate(beams)
      for token in range(log_p.shape[-1])
    ]
    grown.sort(key=lambda pair: -pair[1])
    finished += [
      (text, total, penalised(total, n, beam.length_penalty))
      for text, total in grown[: beam.size]
      if text[-1] == eos_id
    ]
    finished = sorted(finished, key=lambda triple: -triple[2])[: beam.size]
    beams = [pair for pair in grown[: 2 * beam.size] if pair[0][-1] != eos_id][: beam.size]
    reach = penalised(beams[0][1], beam.max_new_tokens, beam.length_penalty)
    if len(finished) == beam.size and (beam.size == 1 or finished[-1][2] >= reach):
      return finished
  n = beam.max_new_tokens
  finished += [(text, total, penalised(total, n, beam.length_penalty)) for text, total in beams]
  return sorted(finished, key=lambda triple: -triple[2])[: beam.size]


@pytest.mark.parametrize(
  'family, beam',
  [
    ('decoder', Beam(3, 9, 0.6)),
    pytest.param('decoder', Beam(4, 7, 2.0), marks=FULL),
    pytest.param('decoder', Beam(2, 8, 0.0), marks=FULL),
    pytest.param('encoder_decoder', Beam(3, 9, 0.6), marks=FULL),
    pytest.param('encoder_decoder', Beam(4, 7, 2.0), marks=FULL),
  ],
)
def test_equals_a_search_without_a_cache(family, beam):
  model, params = setup(family, vocab_size=12)
  prompts = [row % 12 for row in draw([3, 17, 1])]
  sources = sources_of(family, prompts)
  sources = sources and [source % 12 for source in sources]
  reader = Reader.of(model, params)
  # An end that comes up.
  eos = int(search(reader, prompts_of(prompts, sources), beam)[0][0].tokens[3])
  found = search(reader, prompts_of(prompts, sources, eos), beam)
  ends = set()
  for b, prompt in enumerate(prompts):
    expected = reference(model, params, prompt, sources and sources[b], beam, eos)
    assert len(found[b]) == len(expected) == beam.size
    for hypothesis, (text, total, score) in zip(found[b], expected, strict=True):
      ended = text[-1] == eos
      ends.add(ended)
      assert hypothesis.tokens.tolist() == (text[:-1] if ended else text)
      np.testing.assert_allclose(hypothesis.log_probability, total, rtol=1e-4, atol=1e-4)
      np.testing.assert_allclose(hypothesis.score, score, rtol=1e-4, atol=1e-4)
      assert hypothesis.finish == ('eos' if ended else 'length')
  assert True in ends


@pytest.mark.parametrize('alpha', [pytest.param(0.0, marks=FULL), 2.0])
def test_one_beam_is_greedy(alpha):
  model, params = setup('decoder')
  prompts = draw([3, 17, 1, 9])
  eos = int(run('decoder', model, params, prompts)[0][4])
  greedy = run('decoder', model, params, prompts, Sampling(12, 0.0), eos_id=eos)
  found = search(Reader.of(model, params), prompts_of(prompts, None, eos), Beam(1, 12, alpha))
  assert [h[0].tokens.tolist() for h in found] == [tokens.tolist() for tokens in greedy]
  assert {h[0].finish for h in found} >= {'eos'}


@FULL
@pytest.mark.parametrize('family', ['decoder', 'encoder_decoder'])
def test_neighbours_change_nothing(family):
  """Nor does padding, nor a neighbour that has less room below the greatest length."""
  model, params = setup(family, position='learned')
  first = draw([4])
  beam, sources = Beam(3, 12), sources_of(family, draw([4, 55, 9]))
  reader = Reader.of(model, params)
  alone = search(reader, prompts_of(first, sources and sources[:1], EOS), beam)[0]
  rows = first + draw([55, 9], seed=5)
  together = search(reader, prompts_of(rows, sources, EOS), beam)
  assert [h.tokens.tolist() for h in alone] == [h.tokens.tolist() for h in together[0]]
  np.testing.assert_allclose([h.score for h in alone], [h.score for h in together[0]], rtol=1e-5)
  assert max(len(h.tokens) for h in together[1]) == 5


def test_more_tokens_than_a_number_holds_end_with_the_row():
  model, params = setup('decoder')
  reader = Reader.of(model, params)
  (best,) = search(reader, prompts_of(draw([reader.longest - 4])), Beam(1, 10**11))[0]
  assert len(best.tokens) <= 4


@FULL
def test_no_ngram_comes_twice():
  model, params = setup('decoder', vocab_size=6)
  prompt = draw([9])[0] % 6
  found = search(Reader.of(model, params), prompts_of([prompt]), Beam(3, 12, no_repeat_ngram=3))[0]
  for hypothesis in found:
    text = [*prompt, *hypothesis.tokens]
    grams = [tuple(text[i : i + 3]) for i in range(len(text) - 2)]
    new = grams[len(prompt) - 2 :]
    assert len(new) == 12 == len(set(new)) and not set(new) & set(grams[: len(prompt) - 2])


@pytest.mark.parametrize('more', [0, 10])
def test_of_a_prompt_that_fills_the_model_the_last_half_is_read(more):
  reader = Reader.of(*setup('decoder'))
  (row,) = draw([reader.longest + more])
  (full,), (half,) = (
    search(reader, prompts_of([ids]), Beam(2, 5)) for ids in (row, row[-(reader.longest // 2) :])
  )
  assert [h.tokens.tolist() for h in full] == [h.tokens.tolist() for h in half]
  assert len(full[0].tokens) == 5
