"""Text to text: a column of source texts (prompts) and one of target texts (completions)."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxlm.config.field import Named, field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.errors import UserError
from flaxlm.tasks import base, columns
from flaxlm.tasks.base import Example, Predictions


@dataclasses.dataclass(frozen=True)
class Config(Named):
  """Text to text."""

  target_column: str = field('target', 'column of the target text: a name or a number')
  prefix: str = field('', 'text put before every source, such as `summarize: ` (T5)')


class Task(base.Task):
  """How a row is read, and what is reported of the predictions.

  Predictions are arrays over all N target tokens, those of an example one after another:
  `example_ids` int [N], `nll` and `correct` float [N], `ends` bool [N] (it is EOS, which a target
  that was cut lacks).
  """

  gives = ('text', 'target')

  def __init__(self, config: ExperimentConfig):
    self._source = config.data.text_column
    self._target = config.task.target_column
    self._prefix = config.task.prefix

  def parse(self, row: Mapping[str, str], where: str, labelled: bool = True) -> Example:
    """{'text', 'target'} of a row; the text begins with the prefix.

    Args:
      row: column -> text.
      where: 'FILE:LINE', for messages.
      labelled: False where targets are to be written: a row that has none, or an empty one, is
        {'text'}.

    Raises:
      UserError: for a missing column, or an empty source or target.
    """
    source = columns.cell(row, self._source, 'data.text_column', where)
    target = ''
    if labelled or self._target in row:
      target = columns.cell(row, self._target, 'task.target_column', where)
    if not source.strip():
      raise UserError(f'{where}: the source in column {self._source!r} is empty')
    example = {'text': self._prefix + source}
    if target.strip():
      return example | {'target': target}
    if labelled:
      raise UserError(f'{where}: the target in column {self._target!r} is empty')
    return example

  def texts(self, example: Example) -> list[str]:
    """What a tokenizer learns from."""
    return [example[key] for key in ('text', 'target') if key in example]

  def metrics(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, float]:
    """exact_match: the share of targets of which every token, the end included, is the likeliest.

    Given the true tokens before it each time; that is when greedy decoding writes the target.
    """
    return {'exact_match': float(np.mean([exact for _, _, exact in self._scored(predictions)]))}

  def records(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> Iterator[dict[str, Any]]:
    """One JSON-able object for each example: text, target, its loss a token, exact match."""
    for number, loss, exact in self._scored(predictions):
      yield examples[number] | {'loss': round(loss, 6), 'exact_match': exact}

  def _scored(self, predictions: Predictions) -> Iterator[tuple[int, float, bool]]:
    """(number, mean loss of its tokens, whether all are right, and the last is the end) of each."""
    numbers, starts = np.unique(predictions['example_ids'], return_index=True)
    parts = zip(
      *(np.split(predictions[name], starts[1:]) for name in ('nll', 'correct', 'ends')), strict=True
    )
    for number, (nll, correct, ends) in zip(numbers, parts, strict=True):
      yield int(number), float(nll.mean()), bool(correct.all() and ends[-1])
