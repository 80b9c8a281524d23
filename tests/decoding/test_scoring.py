"""Log-probabilities of texts against sums by hand, over windows and behind contexts."""

import json
import types

import numpy as np
import pytest
import stubs
from decoding_setup import VOCAB, draw, full_logits, masked_model, masked_objective, padded, setup
from reference import log_softmax

from flaxlm.data.packing import Stream
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.decoding import scoring
from flaxlm.decoding.scoring import Scorer, Text, windows
from flaxlm.errors import UserError
from flaxlm.objectives.base import Prompt

NOTHING = np.zeros(0, np.int32)
FULL = pytest.mark.full


@pytest.mark.parametrize('length, size, stride', [(1, 8, 3), (8, 8, 3), (50, 8, 3), (50, 8, 8)])
def test_windows_score_each_place_once(length, size, stride):
  scored = []
  for start, stop, first in windows(length, size, stride):
    assert 0 <= start <= first < stop <= length and stop - start <= size
    assert start == 0 or first - start == size - stride
    scored += range(first, stop)
  assert scored == list(range(length))


def scorer_of(model, params, window, stride, **objective):
  return Scorer(model, params, stubs.Objective(**objective), None, window, stride, rows=4)


@pytest.mark.parametrize('family', ['decoder', pytest.param('encoder_decoder', marks=FULL)])
def test_next_tokens_in_one_window(family):
  model, params = setup(family)
  wholes, given = draw([9, 30, 4, 20, 11]), [1, 12, 3, 1, 10]
  sources = draw([7, 40, 2, 11, 3], seed=9) if family == 'encoder_decoder' else [None] * 5
  texts = [
    Text(whole[:n], whole[n:], source)
    for whole, n, source in zip(wholes, given, sources, strict=True)
  ]
  found = scorer_of(model, params, 48, 48).log_probabilities(texts)
  rows = None if sources[0] is None else sources
  log_p = log_softmax(full_logits(model, params, wholes, rows))
  for b, (whole, n) in enumerate(zip(wholes, given, strict=True)):
    expected = [log_p[b, i - 1, whole[i]] for i in range(n, len(whole))]
    np.testing.assert_allclose(found[b], expected, atol=1e-4)


@pytest.mark.parametrize(
  'window, stride',
  [(16, 4), pytest.param(16, 16, marks=FULL), pytest.param(10, 7, marks=FULL)],
)
def test_strided_windows(window, stride):
  """Each token is scored given what its window shows; the first window is the full context."""
  model, params = setup('decoder')
  whole = draw([50])[0]
  found = scorer_of(model, params, window, stride).log_probabilities([Text(whole[:1], whole[1:])])
  full = log_softmax(full_logits(model, params, [whole]))[0]
  expected, differs = [], 0
  for start, stop, first in windows(len(whole) - 1, window, stride):
    log_p = log_softmax(full_logits(model, params, [whole[start:stop]]))[0]
    for i in range(first, stop):
      expected.append(log_p[i - start, whole[i + 1]])
      differs += start > 0 and abs(expected[-1] - full[i, whole[i + 1]]) > 1e-3
  np.testing.assert_allclose(found[0], expected, atol=1e-4)
  covered = [full[i, whole[i + 1]] for i in range(window)]
  np.testing.assert_allclose(found[0][:window], covered, atol=1e-4)
  assert differs > 5


@pytest.mark.parametrize('masked', [False, True])
def test_choices_that_fit_a_window_are_read_behind_the_same(masked):
  model, params = setup('decoder')
  scorer = masked_scorer(16, 8) if masked else scorer_of(model, params, 16, 8)
  whole = draw([30])[0]
  choices = [Text(whole[:22], whole[22 : 22 + n]) for n in (3, 8, 1)]
  found = scorer.together(choices)
  room = 14 - 8 if masked else 17 - 8
  for text, choice in zip(found, choices, strict=True):
    np.testing.assert_array_equal(text.context, whole[22 - room : 22])
    np.testing.assert_array_equal(text.tokens, choice.tokens)
  for text, log_p in zip(found, scorer.log_probabilities(found), strict=True):
    row = np.concatenate([text.context, text.tokens])
    if masked:
      expected = [masked_log_p(row, i) for i in range(room, len(row))]
    else:
      full = log_softmax(full_logits(model, params, [row]))[0]
      expected = [full[i - 1, row[i]] for i in range(room, len(row))]
    np.testing.assert_allclose(log_p, expected, atol=1e-4)
  short, long = Text(whole[:3], whole[3:6]), Text(whole[:3], whole[3:])
  assert scorer.together([short])[0].context.tolist() == whole[:3].tolist()
  assert scorer.together([short, long])[1] is long  # Longer than a window by itself.


def test_a_prefix_is_read_in_both_directions():
  model, params = setup('decoder')
  whole = draw([20])[0]
  texts = [Text(whole[:8], whole[8:], prefix=prefix) for prefix in (False, True)]
  plain, both = scorer_of(model, params, 48, 48).log_probabilities(texts)
  batch = padded('decoder', [whole])
  batch['prefix'] = (batch['positions'] < 8).astype(np.int32)
  output = model.apply({'params': params}, batch)[0]
  log_p = log_softmax((output.hidden @ output.table.T)[0, :, :VOCAB])
  expected = [log_p[i - 1, whole[i]] for i in range(8, 20)]
  np.testing.assert_allclose(both, expected, atol=1e-4)
  assert np.abs(plain - both).max() > 1e-2


def masked_scorer(window, stride, vocab=VOCAB):
  model, params = masked_model(vocab)
  tokenizer = types.SimpleNamespace(cls_id=4, sep_id=5, mask_id=6)
  return Scorer(model, params, masked_objective(), tokenizer, window, stride, rows=4)


def masked_log_p(ids, place):
  """Of the token at a place of a window, by a pass in which it alone is masked."""
  model, params = masked_model(VOCAB)
  row = np.array([4, *ids, 5])
  row[place + 1] = 6
  batch = padded('encoder', [row]) | {'target_positions': np.array([[place + 1]])}
  output = model.apply({'params': params}, batch)[0]['mlm']
  scores = (output.hidden @ output.table.T + output.bias)[0, 0, :VOCAB]
  return log_softmax(scores)[ids[place]]


def test_pseudo_log_likelihood():
  """Every token masked by itself; those of the context never are."""
  whole = draw([12])[0]
  found = masked_scorer(32, 32).log_probabilities([Text(whole[:5], whole[5:])])[0]
  expected = [masked_log_p(whole, place) for place in range(5, 12)]
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_pseudo_log_likelihood_over_windows():
  """Each token in the first window that holds it; two places of a window are marks."""
  whole = draw([20])[0]
  expected = [
    masked_log_p(whole[start:stop], place - start)
    for start, stop, first in windows(20, 6, 3)
    for place in range(first, stop)
  ]
  found = masked_scorer(8, 3).log_probabilities([Text(NOTHING, whole)])[0]
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_one_program_scores_many_texts():
  scorer = masked_scorer(32, 32)
  before = scoring._masked._cache_size()
  for size in (3, 9, 20):
    scorer.log_probabilities([Text(NOTHING, draw([size])[0])])
  assert scoring._masked._cache_size() <= before + 1


class Objective(stubs.Objective):
  """Running text: BOS 3 before it, EOS 1 after it."""

  packing = 'concatenate'

  def __init__(self, tokenizer):
    self.tokenizer = tokenizer

  def prompt(self, text):
    return Prompt(np.append(3, self.tokenizer.encode(text)), eos_id=1)


def test_the_space_at_the_seam_belongs_to_the_text():
  tokenizer = Tokenizer({'name': 'bytes', 'sentinels': 0})
  scorer = Scorer(None, None, Objective(tokenizer), tokenizer, 64, 64)
  for context, text in (('It was', ' good'), ('It was ', 'good')):
    found = scorer.text(text, context, end=True)
    assert found.context.tolist() == [3, *tokenizer.encode('It was')]
    assert found.tokens.tolist() == [*tokenizer.encode(' good'), 1]
  alone = scorer.text('good')
  assert alone.context.tolist() == [3] and alone.tokens.tolist() == [*tokenizer.encode('good')]


def test_a_token_across_the_seam_belongs_to_the_text():
  """`ab` by itself is two tokens, and `abc` one, or another two."""
  pieces = ['a', 'b', 'c', 'bc', 'abc', 'Ġ']
  merges = [('b', 'c'), ('a', 'bc')]
  files = {
    'vocab.json': json.dumps({piece: 7 + i for i, piece in enumerate(pieces)}).encode(),
    'merges.txt': '\n'.join(map(' '.join, merges)).encode(),
  }
  spec = {'name': 'byte_bpe', 'sentinels': 0, 'lowercase': False}
  tokenizer = Tokenizer(spec, files)
  scorer = Scorer(None, None, Objective(tokenizer), tokenizer, 64, 64)
  for context, text, given, scored in (
    ('ab', 'ca', [], ['abc', 'a']),
    ('bb', 'c', ['b'], ['bc']),
    ('b ', 'bc', ['b'], ['▁', 'bc']),
  ):
    found = scorer.text(text, context)
    assert [tokenizer.piece(id) for id in found.context[1:]] == given
    assert [tokenizer.piece(id) for id in found.tokens] == scored


def test_a_context_of_bare_text_is_all_that_is_given():
  """A line end stands in for it only where there is none."""
  tokenizer = Tokenizer({'name': 'bytes', 'sentinels': 0})
  bare = stubs.Objective(
    packing='concatenate', prompt=lambda text: Prompt(tokenizer.encode(text or '\n'))
  )
  scorer = Scorer(None, None, bare, tokenizer, 64, 64)
  for context, given in (('It was', 'It was'), (' ', '\n'), (None, '\n')):
    found = scorer.text(' good', context)
    assert tokenizer.decode(found.context) == given
    assert tokenizer.decode(found.tokens).strip() == 'good'


def test_a_target_has_the_rows_of_its_stream():
  streams = {'decoder': Stream(64, ('decoder_inputs',), prefix='decoder_')}
  scorer = scorer_of(None, None, 32, 16, streams=streams)
  source = np.arange(1, 9)
  text = Text(np.array([3]), np.arange(1, 65), source)
  scorer.check(text)
  assert len(list(scorer._units(0, text))) == 1
  with pytest.raises(UserError, match='a target of 65 tokens does not fit the 64 of a row'):
    scorer.check(Text(np.array([3]), np.arange(1, 66), source))


def test_the_mark_that_begins_a_prompt_stays():
  texts = [Text(np.arange(3, 13), np.arange(5)), Text(np.arange(3, 13), np.arange(3))]
  cut = scorer_of(None, None, 8, 8, prompt_marks=1).together(texts)
  assert [text.context.tolist() for text in cut] == [[3, 10, 11, 12]] * 2
  cut = scorer_of(None, None, 8, 8).together(texts)
  assert [text.context.tolist() for text in cut] == [[9, 10, 11, 12]] * 2


def test_a_target_for_gaps_has_their_sentinels():
  tokenizer = Tokenizer({'name': 'bytes', 'sentinels': 2})
  source = lambda text: tokenizer.encode_marked(text, tokenizer.sentinel_marks)
  prompt = lambda text: Prompt(np.array([3]), source(text), eos_id=1)
  gaps = stubs.Objective(packing='concatenate', sentinels=True, prompt=prompt)
  scorer = Scorer(None, None, gaps, tokenizer, 64, 64)
  found = scorer.text('<extra_id_0> x<extra_id_1>', 'a <extra_id_0>')
  first, second = tokenizer.sentinel_ids
  assert found.tokens.tolist() == [first, *tokenizer.encode(' x'), second]


def test_a_source_that_is_longer_than_a_row_is_named():
  text = Text(np.array([3]), np.array([7]), np.arange(1, 50))
  with pytest.raises(UserError, match='a source of 49 tokens does not fit the 48'):
    scorer_of(None, None, 48, 48).log_probabilities([text])
