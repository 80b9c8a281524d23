"""Metrics of regression, by scipy."""

import math

import numpy as np


def scores(targets: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
  """Pearson's and Spearman's correlation, and the mean absolute error.

  A correlation of a constant is not defined: NaN.

  Args:
    targets, predicted: float [N].

  Returns:
    Name -> value; {} for N = 0.
  """
  from scipy import stats

  if not len(targets):
    return {}
  targets, predicted = np.asarray(targets, np.float64), np.asarray(predicted, np.float64)
  found = {'mean_absolute_error': float(np.abs(targets - predicted).mean())}
  constant = len(targets) < 2 or not np.ptp(targets) or not np.ptp(predicted)
  for name, correlation in (('pearson', stats.pearsonr), ('spearman', stats.spearmanr)):
    found[name] = math.nan if constant else float(correlation(targets, predicted).statistic)
  return found
