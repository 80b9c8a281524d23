"""Summarisation: rows with a text and its summary, or several; ROUGE beside that of the lead."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flaxlm import terminal
from flaxlm.config.field import field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.metrics import generation
from flaxlm.tasks import columns, text_to_text, translation
from flaxlm.tasks.base import Example, Predictions

SEEN_BY_ROUGE = re.compile('[a-z0-9]')


@dataclasses.dataclass(frozen=True)
class Config(text_to_text.Config):
  """Summarisation."""

  lead_sentences: int = field(
    1, 'sentences at the beginning of the text that serve as the baseline', low=1
  )


class Task(translation.Task):
  """As text to text, and ROUGE of the texts that the model wrote and of the first sentences.

  A source may be a json list of sentences, which are read with spaces between; a target a json list
  of summaries, of which the first is learned and all are references.
  """

  def __init__(self, config: ExperimentConfig):
    super().__init__(config)
    self._columns = config.data.text_column, config.task.target_column

  def parse(self, row: Mapping[str, str], where: str, labelled: bool = True) -> Example:
    """'text', 'target', 'references' and 'lead' (the first sentences) of a row.

    Args:
      row: column -> text, or a json list of texts.
      where: 'FILE:LINE', for messages.
      labelled: False where a row need not have a summary: one that cannot be used is none.

    Raises:
      UserError: for a missing column, an empty text or an empty summary.
    """
    source, target = self._columns
    texts = lambda name, key: _texts(columns.cell(row, name, key, where), where)
    sentences = texts(source, 'data.text_column')
    read = lambda: {'references': texts(target, 'task.target_column')}
    summaries = columns.label_part(read, labelled).get('references', [])
    cells = {**row, source: ' '.join(sentences)}
    if target in row:
      cells[target] = summaries[0] if summaries else ''
    example = super().parse(cells, where, labelled)
    if len(sentences) == 1:
      sentences = generation.sentences(sentences[0])
    return example | {
      'references': summaries,
      'lead': ' '.join(sentences[: self._config.lead_sentences]),
    }

  def details(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, Any]:
    """The baseline: ROUGE of the first sentences of the same texts."""
    outputs = translation.written(predictions)
    if not outputs:
      return {}
    leads = [examples[number]['lead'] for number in outputs]
    references = [examples[number]['references'] for number in outputs]
    if not any(SEEN_BY_ROUGE.search(text.lower()) for texts in references for text in texts):
      terminal.warn('rouge-score knows the letters a to z and digits alone: here it finds nothing')
    scores = generation.rouge(leads, references)
    return {f'lead_{self._config.lead_sentences}': scores}

  def _scores(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> tuple[dict[str, float], dict[str, str]]:
    """ROUGE; nothing where no text was written."""
    outputs = translation.written(predictions)
    if not outputs:
      return {}, {}
    references = [examples[number]['references'] for number in outputs]
    return generation.rouge(list(outputs.values()), references), {}


def _texts(cell: str, where: str) -> list[str]:
  """The texts of a cell that is a json list of them; else the cell, unless it is empty."""
  if cell.lstrip().startswith('['):
    try:
      json.loads(cell)
    except (ValueError, RecursionError):
      return [cell]  # A text that begins with a bracket.
    return [text for text in columns.strings(cell, 'a cell', where) if text.strip()]
  return [cell] if cell.strip() else []
