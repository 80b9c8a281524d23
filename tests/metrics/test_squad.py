"""Against a second version of the scripts' rules, written from their description."""

import collections
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxlm.metrics import squad


def words(text):
  """Lower case; punctuation, then the words a, an, the are dropped."""
  kept = ''.join(c for c in text.lower() if c not in set(string.punctuation))
  pieces, word = [], ''
  for c in kept + ' ':
    if c.isalnum() or c == '_':
      word += c
    else:
      pieces += [' ' if word in ('a', 'an', 'the') else word, c]
      word = ''
  return ''.join(pieces).split()


def by_hand(prediction, answer, version_2):
  found, true = words(prediction), words(answer)
  exact = float(' '.join(found) == ' '.join(true))
  if version_2 and (not found or not true):
    return exact, float(found == true)
  left = collections.Counter(true)
  same = 0
  for word in found:
    if left[word]:
      left[word] -= 1
      same += 1
  if not same:
    return exact, 0.0
  precision, recall = same / len(found), same / len(true)
  return exact, 2 * precision * recall / (precision + recall)


TEXT = st.lists(
  st.sampled_from(['The', 'a', 'an', 'cat', 'cat.', 'sat', '1,000', '--', "dog's", 'and', 'é']),
  max_size=5,
).map(' '.join)


@given(TEXT, TEXT, st.booleans())
def test_exact_match_and_f1(prediction, answer, version_2):
  exact, f1 = by_hand(prediction, answer, version_2)
  assert squad.exact(prediction, answer) == exact
  assert squad.f1(prediction, answer, version_2) == pytest.approx(f1)


def test_the_best_true_answer_counts_in_percent():
  predictions = {1: 'The Denver Broncos!', 2: 'in 1990', 3: 'x'}
  answers = {1: ['Broncos', 'denver broncos'], 2: ['1990', 'year 1990'], 3: ['y']}
  found = squad.scores(predictions, answers, version_2=False)
  assert found['exact_match'] == pytest.approx(100 / 3)
  assert found['f1'] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)


def test_questions_without_an_answer():
  predictions = {1: '', 2: 'cat', 3: '', 4: 'a dog'}
  answers = {1: [], 2: [], 3: ['cat'], 4: ['dog', 'the']}
  found = squad.scores(predictions, answers, version_2=True)
  assert found['exact_match'] == found['f1'] == 50.0
  assert found['no_answer_f1'] == 50.0 and found['has_answer_exact_match'] == 50.0


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(0, 1), st.booleans()), min_size=1))
def test_the_best_threshold_is_the_best_of_all(rows):
  odds = {i: float(odd) for i, (odd, _, _) in enumerate(rows)}
  score = {i: value for i, (_, value, _) in enumerate(rows)}
  answers = {i: ['x'] if answerable else [] for i, (_, _, answerable) in enumerate(rows)}

  def mean(threshold):
    total = 0.0
    for i in odds:
      answered = odds[i] <= threshold
      total += (score[i] if answered else 0.0) if answers[i] else float(not answered)
    return 100 * total / len(odds)

  best, threshold = squad.best_threshold(score, odds, answers)
  assert best == pytest.approx(max(mean(t) for t in (-9.0, *odds.values())))
  assert mean(threshold) == pytest.approx(best)
