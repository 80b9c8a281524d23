"""Against numpy written by hand from the definitions."""

import numpy as np
import pytest

from flaxlm.metrics import classification


def by_hand(targets, predicted, num_labels):
  precision, recall, f1, support = [], [], [], []
  for label in range(num_labels):
    hits = np.sum((targets == label) & (predicted == label))
    guessed, real = np.sum(predicted == label), np.sum(targets == label)
    p, r = hits / guessed if guessed else 0.0, hits / real if real else 0.0
    precision.append(p)
    recall.append(r)
    f1.append(2 * p * r / (p + r) if p + r else 0.0)
    support.append(real / len(targets))
  found = {'accuracy': np.mean(targets == predicted)}
  for name, values in (('precision', precision), ('recall', recall), ('f1', f1)):
    found[f'{name}_macro'] = np.mean(values)
    found[f'{name}_weighted'] = np.dot(values, support)
    if num_labels == 2:
      found[f'{name}_binary'] = values[1]
  return found


@pytest.mark.parametrize('num_labels', [2, 3, 6])
@pytest.mark.parametrize('seed', range(4))
def test_scores_against_numpy(num_labels, seed):
  rng = np.random.default_rng(seed)
  targets = rng.integers(0, num_labels, 25) if seed else np.zeros(25, int)
  predicted = np.where(rng.random(25) < 0.6, targets, rng.integers(0, num_labels, 25))
  expected = by_hand(targets, predicted, num_labels)
  found = classification.scores(targets, predicted, num_labels)
  assert set(found) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, err_msg=name, atol=1e-12)


def test_a_label_that_never_occurs_counts_in_the_macro_average():
  scores = classification.scores(np.array([0, 1]), np.array([0, 1]), 4)
  assert scores['accuracy'] == 1.0 and scores['f1_macro'] == 0.5


def test_nothing_to_score():
  empty = np.zeros(0, int)
  assert classification.scores(empty, empty, 2) == {}


def test_confusion_matrix_is_target_then_prediction():
  matrix = classification.confusion_matrix(
    np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0]), ('neg', 'pos', 'none')
  )
  assert matrix['neg'] == {'neg': 1, 'pos': 1, 'none': 0}
  assert matrix['pos'] == {'neg': 1, 'pos': 2, 'none': 0}
  assert sum(matrix['none'].values()) == 0
