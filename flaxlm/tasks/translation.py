"""Translation: line-parallel files, or rows with a source and a target text; BLEU and chrF."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flaxlm.config.field import field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.metrics import generation
from flaxlm.tasks import text_to_text
from flaxlm.tasks.base import Example, Predictions


@dataclasses.dataclass(frozen=True)
class Config(text_to_text.Config):
  """Translation."""

  bleu_tokenizer: str = field(
    '13a',
    'how sacrebleu cuts words: `zh` and `char` for languages without spaces, `intl` for Unicode',
    choices=('13a', 'intl', 'zh', 'char', 'none'),
  )


class Task(text_to_text.Task):
  """As text to text, and BLEU and chrF of the texts that the model wrote.

  Predictions have besides, where texts were written: `output_ids` int [M], their examples, and
  `outputs` [M], the texts.
  """

  writes = True

  def __init__(self, config: ExperimentConfig):
    super().__init__(config)
    self._config = config.task

  def metrics(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, float]:
    """exact_match of the true targets' tokens; bleu and chrf in percent, of what was written."""
    return super().metrics(predictions, examples) | self._scores(predictions, examples)[0]

  def details(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, Any]:
    """The signatures of BLEU and chrF."""
    return self._scores(predictions, examples)[1]

  def records(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> Iterator[dict[str, Any]]:
    """One JSON-able object for each example: as of text_to_text, and what was written."""
    outputs = written(predictions)
    numbers = np.unique(predictions['example_ids'])
    for number, record in zip(numbers, super().records(predictions, examples), strict=True):
      yield record | ({'output': outputs[number]} if number in outputs else {})

  def files(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, bytes]:
    """What eval.py writes besides: the texts that the model wrote, one a line."""
    lines = (' '.join(output.split()) + '\n' for output in written(predictions).values())
    return {'outputs.txt': ''.join(lines).encode()} if 'outputs' in predictions else {}

  def _scores(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> tuple[dict[str, float], dict[str, str]]:
    """BLEU and chrF, and their signatures; nothing where no text was written."""
    outputs = written(predictions)
    if not outputs:
      return {}, {}
    references = [[examples[number]['target']] for number in outputs]
    return generation.translation(list(outputs.values()), references, self._config.bleu_tokenizer)


def written(predictions: Predictions) -> dict[int, str]:
  """Example -> the text that was written for it, in the order of the examples."""
  pairs = zip(predictions.get('output_ids', ()), predictions.get('outputs', ()), strict=True)
  return {int(number): str(output) for number, output in pairs}
