"""Metrics of classification, by scikit-learn; the averaging is in each name."""

from collections.abc import Sequence

import numpy as np


def scores(targets: np.ndarray, predicted: np.ndarray, num_labels: int) -> dict[str, float]:
  """Accuracy, Matthews' correlation (MCC), and precision, recall and F1 averaged over labels.

  `_macro` is the mean over all labels, `_weighted` weights each by how often it is the target; with
  two labels, `_binary` is of the second. A label that is never predicted (precision) or never a
  target (recall) counts as 0, as does its F1 where both are 0. MCC is 0 where all targets, or all
  predictions, are one label.

  Args:
    targets: int [N], in [0, num_labels).
    predicted: int [N]; -1 is none of the labels, and always wrong.
    num_labels: C; labels that do not occur count too.

  Returns:
    Name -> value in [0, 1], of MCC in [-1, 1]; {} for N = 0.
  """
  from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support

  if not len(targets):
    return {}
  found = {'accuracy': float(accuracy_score(targets, predicted))}
  found['mcc'] = float(matthews_corrcoef(targets, predicted))
  averages = ('macro', 'weighted', 'binary') if num_labels == 2 else ('macro', 'weighted')
  for average in averages:
    precision, recall, f1, _ = precision_recall_fscore_support(
      targets,
      predicted,
      # The mean over the second label alone is that of the second label.
      labels=[1] if average == 'binary' else np.arange(num_labels),
      average='macro' if average == 'binary' else average,
      zero_division=0.0,
    )
    values = {'precision': precision, 'recall': recall, 'f1': f1}
    found |= {f'{name}_{average}': float(value) for name, value in values.items()}
  return found


def multi_label_scores(targets: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
  """Precision, recall and F1 averaged over labels, and the share of texts with all labels right.

  `_micro` counts all decisions together, `_macro` is the mean over labels, `_samples` over texts. A
  quotient without a denominator counts as 0.

  Args:
    targets, predicted: bool [N, C].

  Returns:
    Name -> value in [0, 1]; {} for N = 0.
  """
  from sklearn.metrics import precision_recall_fscore_support

  if not len(targets):
    return {}
  found = {'subset_accuracy': float((targets == predicted).all(-1).mean())}
  # A table of one column would be read as two classes, so it gets another, which does not count.
  tables = [np.pad(table, ((0, 0), (0, 1))) for table in (targets, predicted)]
  labels = np.arange(targets.shape[1])
  for average in ('micro', 'macro', 'samples'):
    precision, recall, f1, _ = precision_recall_fscore_support(
      *tables, labels=labels, average=average, zero_division=0.0
    )
    values = {'precision': precision, 'recall': recall, 'f1': f1}
    found |= {f'{name}_{average}': float(value) for name, value in values.items()}
  return found


def confusion_matrix(
  targets: np.ndarray, predicted: np.ndarray, labels: Sequence[str]
) -> dict[str, dict[str, int]]:
  """Target label -> predicted label -> how many; {} for N = 0. targets, predicted: int [N].

  Predictions of -1, none of the labels, are under '(other)', if there are any.
  """
  from sklearn.metrics import confusion_matrix as count

  if not len(targets):
    return {}
  numbers = [*range(len(labels)), *([-1] if (np.asarray(predicted) < 0).any() else [])]
  table = count(targets, predicted, labels=numbers)[: len(labels)]
  names = [*labels, '(other)'][: len(numbers)]
  return {
    target: {label: int(n) for label, n in zip(names, row, strict=True)}
    for target, row in zip(labels, table, strict=True)
  }
