"""Multiple choice: a text (a question, a beginning), its choices, and which of them is right."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxlm.config.field import Named, field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.errors import UserError
from flaxlm.tasks import base, columns
from flaxlm.tasks.base import Example, Predictions


@dataclasses.dataclass(frozen=True)
class Config(Named):
  """Multiple choice."""

  choice_columns: tuple[str, ...] = field(
    ('choices',), 'one column with a json list of the choices, or a column for each'
  )
  num_choices: int = field(0, 'the most that a training row has', derived=True)


class Task(base.Task):
  """How a row is read, and what is reported of the predictions.

  Predictions are arrays over all N choices: `example_ids` and `choice_ids` int [N], which item and
  which choice of it, from 0; `log_probabilities` float [N], normalised over the choices of an item.
  """

  gives = ('text', 'choices', 'label')
  line_column = ''  # A line of text has no choices.

  def __init__(self, config: ExperimentConfig):
    self._data, self._config = config.data, config.task

  def parse(self, row: Mapping[str, str], where: str, labelled: bool = True) -> Example:
    """'text', 'choices' (texts) and 'label' (the number of the right one, from 0) of a row.

    A label may be a number, a letter (A is the first) or the text of the right choice.

    Args:
      row: column -> text.
      where: 'FILE:LINE', for messages.
      labelled: False where the rows are to be predicted: a label that cannot be used is none.

    Raises:
      UserError: for a missing column, an empty text or choice, fewer than two choices, more than
        any training row has, or a label that is none of them.
    """
    example: Example = {
      'text': columns.text(row, self._data.text_column, 'data.text_column', where)
    }
    example['choices'] = choices = self._choices(row, where)
    most = self._config.num_choices
    if len(choices) < 2 or most and len(choices) > most:
      wanted = f'at most {most}, as in training' if len(choices) > 1 else 'at least 2'
      raise UserError(f'{where}: {len(choices)} choices, but there must be {wanted}')
    read = lambda: self._label_part(row, choices, where)
    return example | columns.label_part(read, labelled)

  def _label_part(self, row: Mapping[str, str], choices: Sequence[str], where: str) -> Example:
    label = columns.cell(row, self._data.label_column, 'data.label_column', where)
    return {'label': number_of(label, choices, where)}

  def _choices(self, row: Mapping[str, str], where: str) -> list[str]:
    names = self._config.choice_columns
    if len(names) == 1:
      cell = columns.cell(row, names[0], 'task.choice_columns', where)
      choices = columns.strings(cell, f'the choices in column {names[0]!r}', where)
    else:
      choices = [columns.cell(row, name, 'task.choice_columns', where) for name in names]
    empty = [i for i, choice in enumerate(choices) if not choice.strip()]
    if empty:
      raise UserError(f'{where}: choice {empty[0]} (from 0) is empty')
    return choices

  def texts(self, example: Example) -> list[str]:
    """What a tokenizer learns from."""
    return [example['text'], *example['choices']]

  def discover(self, examples: Iterable[Example]) -> dict[str, Any]:
    """The greatest number of choices."""
    return {'num_choices': max(len(example['choices']) for example in examples)}

  def metrics(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, float]:
    """Accuracy: how often the right choice is the likeliest; {} without labels."""
    right = [
      int(log_p.argmax()) == examples[number]['label']
      for number, log_p in self._items(predictions)
      if 'label' in examples[number]
    ]
    return {'accuracy': float(np.mean(right))} if right else {}

  def records(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> Iterator[dict[str, Any]]:
    """One JSON-able object for each item: text, choices, label (if any), prediction."""
    for number, log_p in self._items(predictions):
      probabilities = [round(float(p), 6) for p in np.exp(log_p)]
      yield examples[number] | {
        'prediction': int(log_p.argmax()),
        'probabilities': probabilities,
      }

  def _items(self, predictions: Predictions) -> Iterator[tuple[int, np.ndarray]]:
    """(example, log-probabilities of its choices in their order)."""
    order = np.lexsort((predictions['choice_ids'], predictions['example_ids']))
    numbers, starts = np.unique(predictions['example_ids'][order], return_index=True)
    parts = np.split(predictions['log_probabilities'][order], starts[1:])
    for number, part in zip(numbers, parts, strict=True):
      yield int(number), part


def number_of(label: str, choices: Sequence[str], where: str) -> int:
  """The choice, from 0, that a label means: its number, its text or its letter.

  Raises:
    UserError: if it is none, or stands for one as its text and for another otherwise.
  """
  label, texts = label.strip(), [choice.strip() for choice in choices]
  place = -1
  if label.isdecimal():
    place = int(label)
  elif len(label.upper()) == 1:
    place = ord(label.upper()) - ord('A')
  meant = {place} & set(range(len(choices)))
  meant |= {texts.index(label)} if label in texts else set()
  if len(meant) > 1:
    what, other = ('number', 'letter') if label.isdecimal() else ('letter', 'number')
    raise UserError(
      f'{where}: the label {label!r} is the {what} of one choice and the text of another: give its '
      f'{other}'
    )
  if meant:
    return meant.pop()
  wanted = 'give its number from 0, its letter or its text'
  raise UserError(
    f'{where}: the label {label[:40]!r} is none of the {len(choices)} choices: {wanted}'
  )
