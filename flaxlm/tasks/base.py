"""The contract of a task, from which the class `Task` of each file here derives.

Everything a task may say of itself stands here with its default, and nothing else of it is asked
for.
"""

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxlm.config import schema
from flaxlm.data import source

Example = dict[str, Any]
# Arrays over what was predicted, by name: what `predict` of the objective returns.
Predictions = Mapping[str, np.ndarray]


class Task(abc.ABC):
  """How labelled rows are read, and what is reported of predictions. It knows no model.

  A subclass sets, as attributes of the class or in `__init__`:

  gives: what an example has of its row, of what objectives need: 'text', 'label', ...

  and, where the default does not hold:

  writes: whether the metrics are of written texts, too, where the objective can write.
  writes_labels: whether what is written is a label, so that `records` need nothing besides.
  readers: ending of a file -> what reads the rows of such files, for formats of the task's own.
  line_column: the column that a bare line of text fills, '' for none; None: that of the text or,
    where a reader takes files of any ending, none.
  held_together: a column; rows with the same cell are held out together.
  unique: a column of which no cell may be twice in an evaluation set.
  """

  gives: tuple[str, ...]
  writes: bool = False
  writes_labels: bool = False
  readers: Mapping[str, source.Reader] = {}
  line_column: str | None = None
  held_together: str = ''
  unique: str = ''

  @abc.abstractmethod
  def __init__(self, config: schema.Config):
    """Takes what it reads from `config.task` and `config.data`."""

  @abc.abstractmethod
  def parse(self, row: Mapping[str, str], where: str, labelled: bool = True) -> Example:
    """The example of a row.

    Args:
      row: column -> text.
      where: 'FILE:LINE', for messages.
      labelled: False where the row is to be predicted: a label that cannot be used is none.

    Raises:
      UserError: for what cannot be used.
    """

  @staticmethod
  def has_label(row: Mapping[str, str]) -> bool:
    """Whether a row of the test set has a label; where it has not, that is no mistake."""
    del row
    return True

  @abc.abstractmethod
  def texts(self, example: Example) -> list[str]:
    """What a tokenizer learns from."""

  def discover(self, examples: Iterable[Example]) -> dict[str, Any]:
    """Fields of `config.task` that the training examples decide; UserError if they cannot."""
    del examples
    return {}

  def settle(self, examples: Iterable[Example]) -> None:
    """Told all examples of a file, before they are predicted a few at a time."""
    del examples

  def read_back(self, again: Callable[[str], str]) -> None:
    """Told how a text looks that was written: `again` encodes and decodes it."""
    del again

  @abc.abstractmethod
  def metrics(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, float]:
    """Metric -> value; {} where nothing that was predicted has a label.

    Args:
      predictions: `example_ids` int [N] are indices into `examples`; with `writes`, `outputs` [M]
        are what was written for the examples `output_ids` [M], if anything was.
      examples: all of the set, of which not all need be predicted.
    """

  def details(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, Any]:
    """What eval.py reports besides the metrics, JSON-able."""
    del predictions, examples
    return {}

  def files(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, bytes]:
    """What eval.py writes besides: ending of the file's name -> content."""
    del predictions, examples
    return {}

  @abc.abstractmethod
  def records(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> Iterator[dict[str, Any]]:
    """One JSON-able object for each example that was predicted, in their order."""
