"""Tagging: a tag for each word, from CoNLL files or rows with lists of words and tags."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxlm.config.field import Named, field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.data import conll, source
from flaxlm.errors import UserError, nearest
from flaxlm.metrics import entities
from flaxlm.tasks import base, columns
from flaxlm.tasks.base import Example, Predictions


@dataclasses.dataclass(frozen=True)
class Config(Named):
  """Tagging."""

  labels: tuple[str, ...] = field((), 'all tags; those of the rows of train, sorted, if unset')


class Task(base.Task):
  """How a row is read, and what is reported of the predictions.

  Predictions are arrays over all N words: `example_ids` and `word_ids` int [N], which sentence and
  which word of it; `predicted` int [N], a number of `config.task.labels`.
  """

  gives = ('text', 'words', 'label')
  readers = {source.ANY_OTHER: conll.rows}

  def __init__(self, config: ExperimentConfig):
    self._data = config.data
    self.labels = columns.labels(config.task)
    self._has_columns = False

  def parse(self, row: Mapping[str, str], where: str, labelled: bool = True) -> Example:
    """'words', 'text' (the words with spaces between) and 'label' (their tags) of a row.

    Args:
      row: column -> json list of texts.
      where: 'FILE:LINE', for messages.
      labelled: False where the rows are to be predicted: tags that cannot be used are none.

    Raises:
      UserError: for a missing column, no words, an empty word, another number of tags than of
        words, or a tag that is not among `labels`.
    """
    name = self._data.text_column
    cell = columns.cell(row, name, 'data.text_column', where)
    words = columns.strings(cell, f'the words in column {name!r}', where)
    if not words:
      raise UserError(f'{where}: there are no words in column {name!r}')
    empty = [i for i, word in enumerate(words) if not word.strip()]
    if empty:
      raise UserError(f'{where}: word {empty[0] + 1} in column {name!r} is empty')
    self._has_columns |= '1' in row  # By their numbers they are there in CoNLL's files alone.
    example: Example = {'text': ' '.join(words), 'words': words}
    return example | columns.label_part(lambda: self._label_part(row, words, where), labelled)

  def settle(self, examples: Iterable[Example]) -> None:
    """Raises UserError for a file of text in place of CoNLL's, all but whose first words are lost.

    That is one of single words with columns beside them, none of which has a tag of the run.
    """
    alone = [len(example['words']) == 1 and 'label' not in example for example in examples]
    if self._has_columns and all(alone):
      raise UserError(
        '--input: every sentence has one word, and columns without a tag of the run; write a word '
        'a line and a blank line between sentences, or a jsonl with lists of words'
      )

  def _label_part(self, row: Mapping[str, str], words: Sequence[str], where: str) -> Example:
    name = self._data.label_column
    cell = columns.cell(row, name, 'data.label_column', where)
    tags = columns.strings(cell, f'the tags in column {name!r}', where)
    if len(tags) != len(words):
      raise UserError(f'{where}: {len(tags)} tags in column {name!r} for {len(words)} words')
    unknown = [tag for tag in tags if not tag or (self.labels and tag not in self.labels)]
    if unknown:
      raise UserError(f'{where}: unknown tag {unknown[0]!r}{nearest(unknown[0], self.labels)}')
    return {'label': tags}

  def texts(self, example: Example) -> list[str]:
    """What a tokenizer learns from."""
    return [example['text']]

  def discover(self, examples: Iterable[Example]) -> dict[str, Any]:
    """The tags, where they are unset; UserError if there is but one."""
    labels = self.labels or tuple(sorted({tag for example in examples for tag in example['label']}))
    if len(labels) < 2:
      raise UserError(f'config.data.train: tagging needs two tags; there is {labels}')
    return {'labels': labels}

  def metrics(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, float]:
    """Accuracy over words and, where tags mark entities, their precision, recall and F1."""
    targets, predicted = self._labelled(predictions, examples)
    if not targets:
      return {}
    pairs = zip(targets, predicted, strict=True)
    right = [a == b for target, tags in pairs for a, b in zip(target, tags, strict=True)]
    found = {'accuracy': float(np.mean(right))}
    if entities.is_scheme(self.labels):
      found |= entities.scores(targets, predicted)[0]
    return found

  def details(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, Any]:
    """What eval.py reports besides: precision, recall and F1 of each type of entity."""
    targets, predicted = self._labelled(predictions, examples)
    if not targets or not entities.is_scheme(self.labels):
      return {}
    return {'entity_types': entities.scores(targets, predicted)[1]}

  def files(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, bytes]:
    """What eval.py writes besides: word, tag and predicted tag, as conlleval reads them.

    Blanks stand between them, which is what it expects; tabs where a word or a tag holds a blank.
    """
    sentences = []
    for number, predicted in self._sentences(predictions):
      example = examples[number]
      tags = example.get('label', ['-'] * len(predicted))
      sentences.append(list(zip(example['words'], tags, predicted, strict=True)))
    blank = any(' ' in cell for lines in sentences for cells in lines for cell in cells)
    between = '\t' if blank else ' '
    blocks = (''.join(between.join(cells) + '\n' for cells in lines) for lines in sentences)
    return {'tags.conll': '\n'.join(blocks).encode()}

  def records(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> Iterator[dict[str, Any]]:
    """One JSON-able object for each sentence: words, label (if any), prediction, entities."""
    for number, predicted in self._sentences(predictions):
      example = examples[number]
      record = {key: example[key] for key in ('words', 'label') if key in example}
      record['prediction'] = predicted
      if entities.is_scheme(self.labels):
        record['entities'] = [
          {'type': kind, 'text': ' '.join(example['words'][start:stop]), 'words': [start, stop]}
          for kind, start, stop in entities.entities(predicted)
        ]
      yield record

  def _sentences(self, predictions: Predictions) -> Iterator[tuple[int, list[str]]]:
    """(example, predicted tags of its words) of each sentence, put together from its parts."""
    order = np.lexsort((predictions['word_ids'], predictions['example_ids']))
    numbers, starts = np.unique(predictions['example_ids'][order], return_index=True)
    parts = np.split(predictions['predicted'][order], starts[1:])
    for number, part in zip(numbers, parts, strict=True):
      yield int(number), [self.labels[i] for i in part]

  def _labelled(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> tuple[list[list[str]], list[list[str]]]:
    """Tags and predicted tags of each sentence that has tags and was predicted whole."""
    # A long sentence is in several rows, of which an evaluation of a few batches may miss some.
    found = [
      (examples[number]['label'], tags)
      for number, tags in self._sentences(predictions)
      if len(examples[number].get('label', ())) == len(tags)
    ]
    return [target for target, _ in found], [tags for _, tags in found]
