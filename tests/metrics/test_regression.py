"""Against numpy, from the definitions."""

import math

import numpy as np

from flaxlm.metrics import regression


def ranks(x):
  """Mean rank of equal values."""
  return np.array([(np.sum(x < v) + np.sum(x <= v) + 1) / 2 for v in x])


def test_against_numpy_with_ties():
  rng = np.random.default_rng(0)
  targets = np.round(rng.uniform(0, 5, 50), 0)
  predicted = np.round(targets + rng.normal(0, 1, 50), 1)
  found = regression.scores(targets, predicted)
  assert math.isclose(found['pearson'], np.corrcoef(targets, predicted)[0, 1])
  assert math.isclose(found['spearman'], np.corrcoef(ranks(targets), ranks(predicted))[0, 1])
  assert math.isclose(found['mean_absolute_error'], np.mean(abs(targets - predicted)))


def test_a_constant_has_no_correlation():
  found = regression.scores(np.arange(3.0), np.ones(3))
  assert math.isnan(found['pearson']) and math.isnan(found['spearman'])
  assert found['mean_absolute_error'] == 2 / 3
  assert regression.scores(np.zeros(0), np.zeros(0)) == {}
