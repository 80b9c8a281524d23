"""GLUE by name (Wang et al. 2019): from its own tsv files, or from TFDS (`tfds:glue/NAME`).

The official metrics are `mcc` (cola), `accuracy` (sst2, rte, qnli, mnli), `accuracy` and
`f1_binary` (mrpc, qqp), `pearson` and `spearman` (stsb, which is a regression). Test sets are
predicted, and scored only where their labels are there.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flaxlm.config.field import Named, field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.data import glue, source
from flaxlm.errors import UserError
from flaxlm.tasks import base, text_classification, text_regression
from flaxlm.tasks.base import Example, Predictions


@dataclasses.dataclass(frozen=True)
class Config(Named):
  """GLUE."""

  subset: str = field('sst2', 'data set of GLUE', choices=tuple(glue.SUBSETS))
  labels: tuple[str, ...] = field((), 'those of the subset', derived=True)

  @property
  def reads_pairs(self) -> bool:
    """Whether a row has two texts."""
    return len(glue.SUBSETS[self.subset].columns) > 1


class Task(base.Task):
  """Reads the rows of a subset; what is reported is that of classification or of regression."""

  gives = ('text', 'label', 'target', 'number')
  writes = True  # By an objective that can.
  writes_labels = True

  def __init__(self, config: ExperimentConfig):
    self._name = name = config.task.subset
    self._subset = subset = glue.SUBSETS[name]
    regression = config.objective.name == 'regression'
    if regression == bool(subset.labels):
      wanted = "'classification' (or one that writes)" if subset.labels else "'regression'"
      raise UserError(f'config.objective.name: {name} of GLUE needs {wanted}')
    pair = subset.columns[1] if len(subset.columns) > 1 else ''
    if regression:
      module, own = text_regression, text_regression.Config('text_regression', pair)
    else:
      module = text_classification
      own = text_classification.Config('text_classification', subset.labels, pair)
    data = dataclasses.replace(config.data, text_column=subset.columns[0], label_column='label')
    self._task = module.Task(dataclasses.replace(config, data=data, task=own))
    read = lambda path, _, bad: glue.rows(path, name, bad)
    self.line_column = self._task.line_column
    self.readers = {'.tsv': read, source.ANY_OTHER: read}

  @staticmethod
  def has_label(row: Mapping[str, str]) -> bool:
    """Whether a row of a test set has a label: those of GLUE have none, those of TFDS -1."""
    return row.get('label', '').strip() not in ('', '-1', '-1.0')

  def read_back(self, again: Callable[[str], str]) -> None:
    """How the labels look once they are written."""
    self._task.read_back(again)

  def parse(self, row: Mapping[str, str], where: str, labelled: bool = True) -> Example:
    """An example as of text_classification or text_regression.

    Labels may be numbers (GLUE's files) or names (TFDS).
    """
    row = dict(row)
    labels, label = self._subset.labels, row.get('label', '').strip()
    if not labelled and not self.has_label(row):
      row.pop('label', None)
    elif label.isdecimal() and int(label) < len(labels):
      row['label'] = labels[int(label)]
    example = self._task.parse(row, where, labelled)
    if not labels:
      return example
    # For models that write the label, as T5 was trained (Raffel et al. 2020, appendix D): the name
    # of the set, and before each text that of its column, in the order of these names.
    texts = (f'{column}: {row[column]}' for column in sorted(self._subset.columns))
    return example | {'source': ' '.join([self._name, *texts])}

  def texts(self, example: Example) -> list[str]:
    """What a tokenizer learns from."""
    return self._task.texts(example)

  def discover(self, examples: Iterable[Example]) -> dict[str, Any]:
    """The labels of the subset."""
    return {'labels': self._subset.labels}

  def metrics(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, float]:
    """Those of the subset's kind, among them the official ones."""
    return self._task.metrics(predictions, examples)

  def details(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, Any]:
    """What eval.py reports besides numbers."""
    return self._task.details(predictions, examples)

  def files(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, bytes]:
    """What eval.py writes besides."""
    return self._task.files(predictions, examples)

  def records(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> Iterator[dict[str, Any]]:
    """One JSON-able object for each prediction."""
    return self._task.records(predictions, examples)
