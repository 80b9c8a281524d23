"""Text classification: a text column, or two, and a label column (sentiment, topic, entailment)."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxlm.config.field import Named, field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.errors import UserError, nearest
from flaxlm.metrics import calibration, classification, figures
from flaxlm.tasks import base, columns
from flaxlm.tasks.base import Example, Predictions

# The prediction where a written text is none of the labels.
NO_LABEL = ''
# What a tokenizer decodes its unknown token to.
UNKNOWN = '\ufffd'


@dataclasses.dataclass(frozen=True)
class Config(Named):
  """Text classification."""

  labels: tuple[str, ...] = field(
    (), 'all labels; those of the rows of train, sorted, if unset. Of two, the second is positive'
  )
  pair_column: str = field('', 'column of a second text, for pairs: a name or a number')
  prefix: str = field(
    '',
    'text put before every source, where the label is written (T5)',
    when={'config.objective.name': ('seq2seq', 'completion')},
  )
  pair_names: tuple[str, ...] = field(
    (), 'what stands before the texts of a pair, where the label is written', derived=True
  )

  @property
  def reads_pairs(self) -> bool:
    """Whether a row has two texts."""
    return bool(self.pair_column)


class Task(base.Task):
  """How a row is read, and what is reported of the predictions.

  Predictions are arrays over the N examples that were predicted: `example_ids` int [N], their
  numbers, and `probabilities` float [N, C] over `config.task.labels`. Where the label is written
  (`seq2seq`, `completion`), they are those of `text_to_text`, and the prediction is the label that
  was written.
  """

  gives = ('text', 'label', 'target')
  writes = True  # By an objective that can.
  writes_labels = True

  def __init__(self, config: ExperimentConfig):
    self._data = config.data
    self._prefix = config.task.prefix
    self._pair = config.task.pair_column
    # As T5 reads pairs (Raffel et al. 2020, appendix D): the columns' names, which in other files
    # may be others than those that were trained on.
    self._names = config.task.pair_names or (config.data.text_column, self._pair)
    self.labels = columns.labels(config.task)
    self.line_column = columns.of_lines(config.data, self._pair)
    self._written = {label: i for i, label in enumerate(self.labels)}

  def read_back(self, again: Callable[[str], str]) -> None:
    """Tells the task how labels look once they are written.

    Args:
      again: text -> the same, encoded and decoded by the tokenizer, which may collapse spaces or
        know no capitals.

    Raises:
      UserError: for labels that are the same then, and for one that the tokenizer has no tokens of.
    """
    self._written = {}
    for i, label in enumerate(self.labels):
      text = again(label).strip()
      if not text or (UNKNOWN in text and UNKNOWN not in label):
        raise UserError(
          f'config.task.labels: {label!r} cannot be written: the tokenizer reads it back as '
          f'{text!r}; give it another name in the rows'
        )
      if text in self._written:
        other = self.labels[self._written[text]]
        raise UserError(
          f'config.task.labels: {other!r} and {label!r} are both written {text!r} by the '
          'tokenizer; give one another name in the rows'
        )
      self._written[text] = i

  def parse(self, row: Mapping[str, str], where: str, labelled: bool = True) -> Example:
    """What is learned of a row.

    Args:
      row: column -> text.
      where: 'FILE:LINE', for messages.
      labelled: False where the rows are to be predicted: a label that cannot be used is none.

    Returns:
      'text' (and 'text_pair'), 'label', and, for models that write the label, 'source', 'target'.

    Raises:
      UserError: for a missing column, an empty text or label, or one that is not among `labels`.
    """
    example = columns.text_or_pair(row, self._data.text_column, self._pair, where)
    texts = columns.texts(example)
    if self._pair:
      texts = [f'{name}: {text}' for name, text in zip(self._names, texts, strict=True)]
    example['source'] = self._prefix + ' '.join(texts)
    return example | columns.label_part(lambda: self._label_part(row, where), labelled)

  def _label_part(self, row: Mapping[str, str], where: str) -> Example:
    name = self._data.label_column
    label = columns.cell(row, name, 'data.label_column', where).strip()
    if not label:
      raise UserError(f'{where}: the label in column {name!r} is empty')
    if self.labels and label not in self.labels:
      raise UserError(f'{where}: unknown label {label!r}{nearest(label, self.labels)}')
    return {'label': label, 'target': label}

  def texts(self, example: Example) -> list[str]:
    """What a tokenizer learns from."""
    return columns.texts(example)

  def discover(self, examples: Iterable[Example]) -> dict[str, Any]:
    """Fields of `config.task` that the training examples decide where they are unset.

    Raises:
      UserError: if there is but one label.
    """
    labels = self.labels or tuple(sorted({example['label'] for example in examples}))
    if len(labels) < 2:
      raise UserError(f'config.data.train: a classifier needs two labels; there is {labels}')
    return {'labels': labels} | ({'pair_names': self._names} if self._pair else {})

  def metrics(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, float]:
    """Accuracy, precision, recall, F1, MCC and calibration error; {} without any labelled example.

    Without probabilities there is no calibration error, and before texts are written, nothing.
    """
    numbers, targets, predicted = self._labelled(predictions, examples)
    found = classification.scores(targets, predicted, len(self.labels))
    if found and 'probabilities' in predictions:
      probabilities = predictions['probabilities'][numbers]
      found['calibration_error'] = calibration.expected_error(probabilities, targets)
    return found

  def details(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, Any]:
    """What eval.py reports besides numbers: the confusion matrix, target -> predicted -> count."""
    _, targets, predicted = self._labelled(predictions, examples)
    matrix = classification.confusion_matrix(targets, predicted, self.labels)
    return {'confusion_matrix': matrix} if matrix else {}

  def files(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, bytes]:
    """What eval.py writes besides: the confusion matrix as a picture."""
    matrix = self.details(predictions, examples).get('confusion_matrix')
    return {'confusion.png': figures.png(figures.confusion(matrix))} if matrix else {}

  def records(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> Iterator[dict[str, Any]]:
    """One JSON-able object for each prediction: text, label (if any), prediction, probabilities."""
    for place, (number, index) in enumerate(self._predicted(predictions)):
      example = examples[number]
      record = {key: example[key] for key in ('text', 'text_pair', 'label') if key in example}
      record['prediction'] = self.labels[index] if index >= 0 else NO_LABEL
      if 'probabilities' in predictions:
        row = predictions['probabilities'][place]
        record['probabilities'] = {
          label: round(float(p), 6) for label, p in zip(self.labels, row, strict=True)
        }
      else:
        record['output'] = predictions['outputs'][place]
      yield record

  def _predicted(self, predictions: Predictions) -> list[tuple[int, int]]:
    """(example, index of its predicted label, -1 for none of them) in the order of predictions."""
    if 'probabilities' in predictions:
      indices = predictions['probabilities'].argmax(-1)
      return list(zip(predictions['example_ids'].tolist(), indices.tolist(), strict=True))
    found = zip(predictions.get('output_ids', ()), predictions.get('outputs', ()), strict=True)
    return [(int(n), self._written.get(str(output).strip(), -1)) for n, output in found]

  def _labelled(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place among the predictions, target and prediction, int [N], of the labelled examples."""
    found = [
      (place, self.labels.index(examples[number]['label']), index)
      for place, (number, index) in enumerate(self._predicted(predictions))
      if 'label' in examples[number]
    ]
    table = np.array(found, np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]
