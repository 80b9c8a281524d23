"""Text classification: a text column and a label column (sentiment, topic, spam)."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxlm.config.field import Named, field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.errors import UserError, nearest
from flaxlm.metrics import classification

Example = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Config(Named):
  """Text classification."""

  labels: tuple[str, ...] = field(
    (), 'all labels; those of the training rows, sorted, if unset. Of two, the second is positive'
  )


class Task:
  """How a row is read, and what is reported of the predictions.

  Predictions are arrays over the N examples that were predicted: `example_ids` int [N], their
  numbers, and `probabilities` float [N, C] over `config.task.labels`.
  """

  gives = ('text', 'label')

  def __init__(self, config: ExperimentConfig):
    self._data = config.data
    self.labels = tuple(config.task.labels)

  def parse(self, row: Mapping[str, str], where: str, labelled: bool = True) -> Example:
    """{'text', 'label'} of a row.

    Args:
      row: column -> text.
      where: 'FILE:LINE', for messages.
      labelled: False where the rows are to be predicted and need no label.

    Raises:
      UserError: for a missing column, an empty label, or one that is not among `labels`.
    """
    example = {'text': _column(row, self._data.text_column, 'text_column', where)}
    if not labelled and self._data.label_column not in row:
      return example
    label = _column(row, self._data.label_column, 'label_column', where).strip()
    if not label:
      raise UserError(f'{where}: the label in column {self._data.label_column!r} is empty')
    if self.labels and label not in self.labels:
      raise UserError(f'{where}: unknown label {label!r}{nearest(label, self.labels)}')
    return example | {'label': label}

  def texts(self, example: Example) -> list[str]:
    """What a tokenizer learns from."""
    return [example['text']]

  def discover(self, examples: Iterable[Example]) -> dict[str, Any]:
    """Fields of `config.task` that the training examples decide where they are unset.

    Raises:
      UserError: if there is but one label.
    """
    labels = self.labels or tuple(sorted({example['label'] for example in examples}))
    if len(labels) < 2:
      raise UserError(f'config.data.train: a classifier needs two labels; there is {labels}')
    return {'labels': labels}

  def metrics(
    self, predictions: Mapping[str, np.ndarray], examples: Sequence[Example]
  ) -> dict[str, float]:
    """Accuracy, precision, recall and F1; {} where no example has a label."""
    targets, predicted = self._labelled(predictions, examples)
    return classification.scores(targets, predicted, len(self.labels))

  def details(
    self, predictions: Mapping[str, np.ndarray], examples: Sequence[Example]
  ) -> dict[str, Any]:
    """What eval.py reports besides numbers: the confusion matrix, target -> predicted -> count."""
    targets, predicted = self._labelled(predictions, examples)
    matrix = classification.confusion_matrix(targets, predicted, self.labels)
    return {'confusion_matrix': matrix} if matrix else {}

  def records(
    self, predictions: Mapping[str, np.ndarray], examples: Sequence[Example]
  ) -> Iterator[dict[str, Any]]:
    """One JSON-able object for each prediction: text, label (if any), prediction, probabilities."""
    for number, row in zip(predictions['example_ids'], predictions['probabilities'], strict=True):
      probabilities = {label: round(float(p), 6) for label, p in zip(self.labels, row, strict=True)}
      yield examples[number] | {
        'prediction': self.labels[int(row.argmax())],
        'probabilities': probabilities,
      }

  def _labelled(
    self, predictions: Mapping[str, np.ndarray], examples: Sequence[Example]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Targets and predictions, int [N], of the examples that have a label."""
    pairs = [
      (self.labels.index(examples[number]['label']), int(row.argmax()))
      for number, row in zip(predictions['example_ids'], predictions['probabilities'], strict=True)
      if 'label' in examples[number]
    ]
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _column(row: Mapping[str, str], name: str, key: str, where: str) -> str:
  if name not in row:
    raise UserError(f'{where}: no column {name!r}{nearest(name, row)}; set config.data.{key}')
  return str(row[name])
