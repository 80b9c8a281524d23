"""Windows, spans in characters, and the n best answers against every pair of tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from objective_setup import byte_tokenizer, make

from flaxlm.data import packing
from flaxlm.data.pipeline import PackedItems
from flaxlm.errors import UserError
from flaxlm.objectives.span_qa import IMPOSSIBLE, token_span, windows

T = byte_tokenizer()
TEXT = 'Denver won 24-10 in Santa Clara, K\u00f6ln and M\u00fcnchen did not play at all that day.'


def answerer(model='encoder', **changes):
  changes = {
    'data__train': 'r.json', 'objective__max_question_length': 12, 'objective__doc_stride': 16,
    **changes,
  }  # fmt: skip
  return make('span_qa', model, T, 'question_answering', **changes)


def question(answer, text=TEXT, words='Where?'):
  answers = [] if answer is None else [{'text': answer, 'start': text.index(answer)}]
  return {'id': '1', 'text': text, 'question': words, 'answers': answers}


def batch_of(objective, examples):
  packed = PackedItems(objective, objective.items(examples), None)
  rows = [[objective.features(item, None) for item in packed[row]] for row in range(len(packed))]
  return packing.pack_rows(rows, objective.streams)


@given(st.integers(0, 200), st.integers(1, 60), st.integers(1, 80))
def test_windows_cover_everything(length, room, stride):
  found = windows(length, room, stride)
  assert found[0][0] == 0 and found[-1][1] == length
  assert {i for start, stop in found for i in range(start, stop)} == set(range(length))
  assert all(stop - start <= room for start, stop in found)
  for (a, _), (b, _) in zip(found, found[1:], strict=False):
    assert b - a == (stride if stride < room else max(room // 2, 1))
  assert len(found) == 1 or found[-2][1] < length  # No window more than is needed.


@pytest.mark.parametrize('family', ['encoder', 'decoder', 'xlnet'])
@pytest.mark.parametrize('answer', ['24-10', 'Denver', 'K\u00f6ln', 'that day.'])
def test_the_target_of_a_window_is_the_answer_or_nothing(family, answer):
  objective = answerer(family)
  holding = 0
  for item in objective.items([question(answer)]):
    features = objective.features(item, None)
    start, end = int(features['start_targets'][0]), int(features['end_targets'][0])
    null = 0 if family == 'encoder' else len(features['inputs']) - 1
    if (start, end) == (null, null):
      text = TEXT[item['characters'][0, 0] : item['characters'][-1, 1]]
      assert answer not in text
    else:
      holding += 1
      assert TEXT[features['char_starts'][start] : features['char_ends'][end]] == answer
      assert T.decode(features['inputs'][start : end + 1]) == answer
  assert holding >= 1


def test_a_span_from_characters():
  characters = np.array([[0, 3], [3, 3], [4, 9], [9, 10]])
  assert token_span(characters, {'text': 'York', 'start': 5}) == (2, 2)
  assert token_span(characters, {'text': 'w York.', 'start': 2}) == (0, 2)
  assert token_span(characters, {'text': ' ', 'start': 3}) is None


def test_an_answer_does_not_begin_or_end_with_white_space():
  objective = answerer()
  for item in objective.items([question('24-10')]):
    texts = [TEXT[start:end] for start, end in item['characters']]
    assert ' ' in T.decode(item['text']) and '' in texts and ' ' not in texts


def by_brute_force(objective, outputs, batch, row, slot):
  """(scores and characters of pairs, best first; score of no answer), by a loop over a window.

  The pairs are those of its n best beginnings and its n best ends.
  """
  null = batch['null_positions'][row, slot]
  own = np.flatnonzero(batch['segment_ids'][row] == batch['segment_ids'][row, null])
  text = [i for i in own if batch['char_ends'][row, i] > batch['char_starts'][row, i]]
  pairs, n = [], objective.config.n_best
  best = [sorted(text, key=lambda i: -outputs[row, i, end])[:n] for end in (0, 1)]
  for i in best[0]:
    for j in best[1]:
      if 0 <= j - i < objective.config.max_answer_length:
        score = outputs[row, i, 0] + outputs[row, j, 1]
        characters = batch['char_starts'][row, i], batch['char_ends'][row, j]
        pairs.append((float(score), *map(int, characters)))
  return sorted(pairs, reverse=True), outputs[row, null].sum()


def test_the_best_answers_are_those_of_all_pairs():
  n = 5
  objective = answerer(objective__n_best=n, objective__max_answer_length=7)
  examples = [
    question('24-10'),
    question('Clara', 'Santa Clara', 'Who?'),
    question(None, 'Ob', '?'),
  ]
  batch = batch_of(objective, examples)
  outputs = np.random.default_rng(0).normal(size=(*batch['inputs'].shape, 2)).astype(np.float32)
  found = {k: np.asarray(v) for k, v in objective.predict(outputs, batch).items()}
  slots = list(zip(*np.nonzero(batch['example_weights']), strict=True))
  assert len(slots) == len(objective.items(examples)) > 3
  for row, slot in slots:
    pairs, null = by_brute_force(objective, outputs, batch, row, slot)
    np.testing.assert_allclose(found['null_scores'][row, slot], null, rtol=1e-6)
    scores = found['scores'][row, slot]
    count = min(n, len(pairs))
    np.testing.assert_allclose(scores[:count], [score for score, *_ in pairs[:n]], rtol=1e-6)
    assert (scores[count:] < IMPOSSIBLE / 2).all()
    characters = zip(found['starts'][row, slot], found['ends'][row, slot], strict=True)
    assert list(characters)[:count] == [pair[1:] for pair in pairs[:n]]


def test_the_loss_is_over_the_tokens_of_a_window_only():
  objective = answerer()
  batch = batch_of(objective, [question('Denver', 'Denver won', 'Who?'), question(None, 'Ob', '?')])
  assert len(batch['inputs']) == 1  # Both in one row.
  outputs = np.random.default_rng(0).normal(size=(1, 64, 2)).astype(np.float32)
  totals, metrics = objective.losses(outputs, batch)
  expected = 0.0
  for slot in (0, 1):
    null = batch['null_positions'][0, slot]
    own = batch['segment_ids'][0] == batch['segment_ids'][0, null]
    for i, key in enumerate(('start_targets', 'end_targets')):
      x = outputs[0, :, i].astype(np.float64)
      expected += (np.log(np.exp(x[own]).sum()) - x[batch[key][0, slot]]) / 2
  np.testing.assert_allclose(totals['loss'], expected, rtol=1e-5)
  assert metrics['loss'].weight == 2 == objective.weights(batch)['loss']


def test_an_answer_that_ends_a_token_beyond_a_window_is_not_in_it():
  objective = answerer()
  first = objective.items([question('did', words='Where ?')])[0]
  assert len(first['text']) == len(TEXT[: TEXT.index('did') + 2].encode())  # All but its last.
  assert first['span'] is None


def test_right_is_a_window_of_which_both_ends_are_right():
  objective = answerer()
  batch = batch_of(objective, [question('Denver', 'Denver won', 'Who?')])
  start, end = int(batch['start_targets'][0, 0]), int(batch['end_targets'][0, 0])
  for places, right in (((start, end), 1), ((start, end - 1), 0), ((start + 1, end), 0)):
    outputs = np.zeros((1, 64, 2), np.float32)
    outputs[0, places[0], 0] = outputs[0, places[1], 1] = 9
    accuracy = objective.losses(outputs, batch)[1]['accuracy']
    assert (float(accuracy.total), float(accuracy.weight)) == (right, 1)


def test_questions_without_answers_are_predicted_and_cost_nothing():
  objective = answerer()
  example = {key: value for key, value in question('Denver').items() if key != 'answers'}
  batch = batch_of(objective, [example])
  assert batch['target_weights'].sum() == 0 and batch['example_weights'].sum() > 1


def test_a_long_question_is_cut_and_that_is_said(capsys):
  items = answerer().items([question('Denver', words='w' * 20)])
  assert {len(item['question']) for item in items} == {12}
  assert '1 questions are longer' in capsys.readouterr().err
  with pytest.raises(UserError, match='max_question_length.*nearest valid value is 60'):
    answerer(objective__max_question_length=61)
