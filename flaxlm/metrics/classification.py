"""Metrics of single-label classification, by scikit-learn; the averaging is in each name."""

from collections.abc import Sequence

import numpy as np


def scores(targets: np.ndarray, predicted: np.ndarray, num_labels: int) -> dict[str, float]:
  """Accuracy, and precision, recall and F1 averaged over labels.

  `_macro` is the mean over all labels, `_weighted` weights each by how often it is the target; with
  two labels, `_binary` is of the second. A label that is never predicted (precision) or never a
  target (recall) counts as 0, as does its F1 where both are 0.

  Args:
    targets: int [N], in [0, num_labels).
    predicted: int [N].
    num_labels: C; labels that do not occur count too.

  Returns:
    Name -> value in [0, 1]; {} for N = 0.
  """
  from sklearn.metrics import accuracy_score, precision_recall_fscore_support

  if not len(targets):
    return {}
  found = {'accuracy': float(accuracy_score(targets, predicted))}
  averages = ('macro', 'weighted', 'binary') if num_labels == 2 else ('macro', 'weighted')
  for average in averages:
    precision, recall, f1, _ = precision_recall_fscore_support(
      targets,
      predicted,
      labels=None if average == 'binary' else np.arange(num_labels),
      average=average,
      zero_division=0.0,
    )
    values = {'precision': precision, 'recall': recall, 'f1': f1}
    found |= {f'{name}_{average}': float(value) for name, value in values.items()}
  return found


def confusion_matrix(
  targets: np.ndarray, predicted: np.ndarray, labels: Sequence[str]
) -> dict[str, dict[str, int]]:
  """Target label -> predicted label -> how many; {} for N = 0. targets, predicted: int [N]."""
  from sklearn.metrics import confusion_matrix as count

  if not len(targets):
    return {}
  table = count(targets, predicted, labels=np.arange(len(labels)))
  return {
    target: {label: int(n) for label, n in zip(labels, row, strict=True)}
    for target, row in zip(labels, table, strict=True)
  }
