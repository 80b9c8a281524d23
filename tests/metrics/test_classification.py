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
  found = {'accuracy': np.mean(targets == predicted), 'mcc': correlation(targets, predicted)}
  for name, values in (('precision', precision), ('recall', recall), ('f1', f1)):
    found[f'{name}_macro'] = np.mean(values)
    found[f'{name}_weighted'] = np.dot(values, support)
    if num_labels == 2:
      found[f'{name}_binary'] = values[1]
  return found


def correlation(targets, predicted):
  """Of the indicators of each label, summed over labels (Gorodkin 2004)."""
  labels = np.unique([*targets, *predicted])
  x, y = ((np.asarray(z)[:, None] == labels).astype(float) for z in (targets, predicted))
  covariance = lambda a, b: ((a - a.mean(0)) * (b - b.mean(0))).sum()
  scale = np.sqrt(covariance(x, x) * covariance(y, y))
  return covariance(x, y) / scale if scale else 0.0


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


def test_what_is_none_of_the_labels_is_wrong():
  targets, predicted = np.array([0, 1, 1, 0]), np.array([0, -1, 1, -1])
  found = classification.scores(targets, predicted, 2)
  expected = by_hand(targets, predicted, 2)
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, err_msg=name, atol=1e-12)
  matrix = classification.confusion_matrix(targets, predicted, ('a', 'b'))
  assert matrix == {'a': {'a': 1, 'b': 0, '(other)': 1}, 'b': {'a': 0, 'b': 1, '(other)': 1}}


@pytest.mark.parametrize('num_labels', [1, 2, 5])
def test_multi_label_scores_against_counts(num_labels):
  rng = np.random.default_rng(0)
  shape = (40, num_labels)
  targets, predicted = rng.random(shape) < 0.3, rng.random(shape) < 0.4
  predicted[:, 4:] = False  # A label that is never predicted.
  targets[3] = predicted[3] = False  # A text without labels.

  def quotient(a, b):
    return a / b if b else 0.0

  def f1(p, r):
    return quotient(2 * p * r, p + r)

  hits = targets & predicted
  found = classification.multi_label_scores(targets, predicted)
  p, r = hits.sum() / predicted.sum(), hits.sum() / targets.sum()
  expected = {'precision_micro': p, 'recall_micro': r, 'f1_micro': f1(p, r)}
  for name, axis in (('macro', 0), ('samples', 1)):
    sums = zip(hits.sum(axis), predicted.sum(axis), targets.sum(axis), strict=True)
    pairs = [(quotient(h, g), quotient(h, t)) for h, g, t in sums]
    expected[f'precision_{name}'] = np.mean([p for p, _ in pairs])
    expected[f'recall_{name}'] = np.mean([r for _, r in pairs])
    expected[f'f1_{name}'] = np.mean([f1(*pair) for pair in pairs])
  expected['subset_accuracy'] = np.mean(
    [not (a ^ b).any() for a, b in zip(targets, predicted, strict=True)]
  )
  assert set(found) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, err_msg=name, atol=1e-12)
  assert classification.multi_label_scores(targets[:0], predicted[:0]) == {}
