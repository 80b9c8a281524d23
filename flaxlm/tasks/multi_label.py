"""Multi-label classification: a text column, or two, and a column with any number of labels."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxlm.config.field import Named, field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.errors import UserError, nearest
from flaxlm.metrics import classification
from flaxlm.tasks import base, columns
from flaxlm.tasks.base import Example, Predictions


@dataclasses.dataclass(frozen=True)
class Config(Named):
  """Multi-label classification."""

  labels: tuple[str, ...] = field((), 'all labels; those of the rows of train, sorted, if unset')
  pair_column: str = field('', 'column of a second text, for pairs: a name or a number')
  separator: str = field(
    ',', 'what stands between the labels of a cell that is not a json list; an empty cell has none'
  )
  threshold: float = field(0.5, 'probability from which a label is predicted', above=0.0, below=1.0)


class Task(base.Task):
  """How a row is read, and what is reported of the predictions.

  Predictions are arrays over the N examples that were predicted: `example_ids` int [N], their
  numbers, and `probabilities` float [N, C] of each of `config.task.labels`.
  """

  gives = ('text', 'labels')

  def __init__(self, config: ExperimentConfig):
    self._data, self._config = config.data, config.task
    self.labels = columns.labels(config.task)
    self.line_column = columns.of_lines(config.data, config.task.pair_column)

  def parse(self, row: Mapping[str, str], where: str, labelled: bool = True) -> Example:
    """'text' (and 'text_pair') and 'label', a list of labels, of a row.

    Args:
      row: column -> text.
      where: 'FILE:LINE', for messages.
      labelled: False where the rows are to be predicted: a label that cannot be used is none.

    Raises:
      UserError: for a missing column, an empty text, or a label that is not among `labels`.
    """
    pair = self._config.pair_column
    example: Example = columns.text_or_pair(row, self._data.text_column, pair, where)
    return example | columns.label_part(lambda: self._label_part(row, where), labelled)

  def _label_part(self, row: Mapping[str, str], where: str) -> Example:
    name = self._data.label_column
    cell = columns.cell(row, name, 'data.label_column', where).strip()
    if cell.startswith('['):
      labels = columns.strings(cell, f'the labels in column {name!r}', where)
    else:
      labels = [label.strip() for label in cell.split(self._config.separator)] if cell else []
    for label in labels:
      if not label or (self.labels and label not in self.labels):
        raise UserError(f'{where}: unknown label {label!r}{nearest(label, self.labels)}')
    return {'label': labels}

  def texts(self, example: Example) -> list[str]:
    """What a tokenizer learns from."""
    return columns.texts(example)

  def discover(self, examples: Iterable[Example]) -> dict[str, Any]:
    """The labels, where they are unset; UserError if no training row has one."""
    labels = self.labels or tuple(sorted({label for e in examples for label in e['label']}))
    if not labels:
      raise UserError('config.data.train: no row has a label')
    return {'labels': labels}

  def metrics(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, float]:
    """Precision, recall, F1 and subset accuracy; {} where no example has labels."""
    labelled = [p for p, i in enumerate(predictions['example_ids']) if 'label' in examples[i]]
    numbers = predictions['example_ids'][labelled]
    true = [[label in examples[i]['label'] for label in self.labels] for i in numbers]
    predicted = predictions['probabilities'][labelled] >= self._config.threshold
    targets = np.array(true, bool).reshape(-1, len(self.labels))
    return classification.multi_label_scores(targets, predicted)

  def records(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> Iterator[dict[str, Any]]:
    """One JSON-able object for each prediction: text, label (if any), prediction, probabilities."""
    for i, row in zip(predictions['example_ids'], predictions['probabilities'], strict=True):
      pairs = list(zip(self.labels, row.tolist(), strict=True))
      yield examples[i] | {
        'prediction': [label for label, p in pairs if p >= self._config.threshold],
        'probabilities': {label: round(p, 6) for label, p in pairs},
      }
