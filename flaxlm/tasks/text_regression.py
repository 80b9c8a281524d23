"""Text regression: a text column, or two, and a column of numbers (similarity, stars)."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxlm.config.field import Named, field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.errors import UserError
from flaxlm.metrics import regression
from flaxlm.tasks import base, columns
from flaxlm.tasks.base import Example, Predictions


@dataclasses.dataclass(frozen=True)
class Config(Named):
  """Text regression."""

  pair_column: str = field('', 'column of a second text, for pairs: a name or a number')


class Task(base.Task):
  """How a row is read, and what is reported of the predictions.

  Predictions are arrays over the N examples that were predicted: `example_ids` int [N], their
  numbers, and `values` float [N].
  """

  gives = ('text', 'number')

  def __init__(self, config: ExperimentConfig):
    self._data = config.data
    self._pair = config.task.pair_column
    self.line_column = columns.of_lines(config.data, self._pair)

  def parse(self, row: Mapping[str, str], where: str, labelled: bool = True) -> Example:
    """'text' (and 'text_pair') and 'label', a number, of a row.

    Args:
      row: column -> text.
      where: 'FILE:LINE', for messages.
      labelled: False where the rows are to be predicted: a label that cannot be used is none.

    Raises:
      UserError: for a missing column, an empty text, or a label that is no finite number.
    """
    example: Example = columns.text_or_pair(row, self._data.text_column, self._pair, where)
    return example | columns.label_part(lambda: self._label_part(row, where), labelled)

  def _label_part(self, row: Mapping[str, str], where: str) -> Example:
    name = self._data.label_column
    return {'label': number(columns.cell(row, name, 'data.label_column', where), name, where)}

  def texts(self, example: Example) -> list[str]:
    """What a tokenizer learns from."""
    return columns.texts(example)

  def metrics(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, float]:
    """Pearson, Spearman and mean absolute error; {} where no example has a label."""
    pairs = zip(predictions['example_ids'], predictions['values'], strict=True)
    found = [(examples[i]['label'], value) for i, value in pairs if 'label' in examples[i]]
    table = np.array(found, np.float64).reshape(-1, 2)
    return regression.scores(table[:, 0], table[:, 1])

  def records(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> Iterator[dict[str, Any]]:
    """One JSON-able object for each prediction: text, label (if any), prediction."""
    for i, value in zip(predictions['example_ids'], predictions['values'], strict=True):
      yield examples[i] | {'prediction': round(float(value), 6)}


def number(cell: str, name: str, where: str) -> float:
  """The finite number in a cell of the column `name`; UserError if it is none."""
  try:
    value = float(cell)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise UserError(f'{where}: the label in column {name!r} must be a number, got {cell[:40]!r}')
  return value
