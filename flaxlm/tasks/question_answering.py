"""Extractive question answering: SQuAD's json (1.1 and 2.0), or rows with the same columns."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxlm.config.field import Named, field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.data import squad as squad_files
from flaxlm.errors import UserError
from flaxlm.metrics import squad
from flaxlm.tasks import base, columns
from flaxlm.tasks.base import Example, Predictions

# A score below this marks a place of the n-best list that has no answer.
NO_ANSWER_SCORE = -1e29


@dataclasses.dataclass(frozen=True)
class Config(Named):
  """Question answering."""

  unanswerable: bool | None = field(
    None,
    'whether a question may have no answer (SQuAD 2.0); as in the training rows, if unset, or, of '
    'an imported model, as in those that are evaluated',
  )
  null_threshold: float = field(
    0.0,
    'no answer is predicted where its score is that much above the best answer; eval.py reports '
    'the best value',
    when={'unanswerable': (None, True)},
  )


@dataclasses.dataclass
class Answer:
  """Candidates (score, text), best first, without ''; and the score of no answer."""

  candidates: list[tuple[float, str]]
  null_score: float

  @property
  def odds(self) -> float:
    """Score of no answer less that of the best one."""
    return self.null_score - self.candidates[0][0] if self.candidates else math.inf


class Task(base.Task):
  """How a row is read, and what is reported of the predictions.

  Predictions are arrays over N windows: `example_ids` int [N], `null_scores` float [N], and of the
  K best answers of each `scores` float, `starts`, `ends` int (characters of the text) [N, K].
  """

  gives = ('text', 'question', 'answers')
  readers = {'.json': squad_files.rows}
  line_column = ''  # A line of text has no context.
  # Questions on a context that was trained on are no test, and the official scripts know a question
  # by its id.
  held_together = 'context'
  unique = 'id'

  def __init__(self, config: ExperimentConfig):
    self._config = config.task
    self._lacking = config.task.unanswerable

  def settle(self, examples: Iterable[Example]) -> None:
    """Decides for all examples of a file, that come a few at a time, what the config leaves."""
    self._lacking = self._may_lack(examples)

  def parse(self, row: Mapping[str, str], where: str, labelled: bool = True) -> Example:
    """'id', 'question', 'text' (the context) and 'answers' ({'text', 'start'} each) of a row.

    Args:
      row: column -> text; `answers` is json, as `flaxlm.data.squad.rows` gives it, or a list of
        {"text", "answer_start"}. Without an `id`, the place of the row is one.
      where: for messages.
      labelled: False where the rows are to be predicted: answers that cannot be used are none.

    Raises:
      UserError: for a missing column, an empty text or question, an answer that does not stand in
        the text where it is said to.
    """
    example: Example = {'id': row.get('id') or where}
    for name, key in (('question', 'question'), ('context', 'text')):
      example[key] = columns.text(row, name, '', where)
    read = lambda: _label_part(row, example['text'], where)
    return example | columns.label_part(read, labelled)

  def texts(self, example: Example) -> list[str]:
    """What a tokenizer learns from."""
    return [example['question'], example['text']]

  def discover(self, examples: Iterable[Example]) -> dict[str, Any]:
    """Whether questions may have no answer, where that is unset."""
    return {'unanswerable': self._may_lack(examples)}

  def _may_lack(self, examples: Iterable[Example]) -> bool:
    """Whether questions may have no answer: as decided, or as in these examples."""
    if self._lacking is not None:
      return self._lacking
    return any(not example.get('answers', True) for example in examples)

  def metrics(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, float]:
    """exact_match and f1 in percent; {} where no example has answers.

    Of SQuAD 2.0, also of the questions with and without an answer, and best_exact_match and best_f1
    with the thresholds that give them.
    """
    answers = {n: a for n, a in self._answers(predictions, examples) if 'answers' in examples[n]}
    if not answers:
      return {}
    true = {n: [answer['text'] for answer in examples[n]['answers']] for n in answers}
    lacking = self._may_lack(examples)
    predicted = {n: self._text(answer, lacking) for n, answer in answers.items()}
    found = squad.scores(predicted, true, lacking)
    if lacking:
      odds = {n: answer.odds for n, answer in answers.items()}
      worded = {n: squad.with_words(texts) for n, texts in true.items()}
      for name, measure in (('exact_match', squad.exact), ('f1', _f1_of_2)):
        best = {
          n: squad.score(measure, a.candidates[0][1] if a.candidates else '', worded[n])
          for n, a in answers.items()
        }
        value, threshold = squad.best_threshold(best, odds, true)
        found |= {f'best_{name}': value, f'best_{name}_threshold': threshold}
    return found

  def files(self, predictions: Predictions, examples: Sequence[Example]) -> dict[str, bytes]:
    """What eval.py writes besides, in the layout that SQuAD's scripts read.

    predictions.json: question -> answer; nbest.json: question -> answers with their probabilities;
    and of SQuAD 2.0 null_odds.json: question -> score of no answer less that of the best one.
    """
    answers, lacking = list(self._answers(predictions, examples)), self._may_lack(examples)
    tables: dict[str, Any] = {
      'predictions.json': {examples[n]['id']: self._text(answer, lacking) for n, answer in answers},
      'nbest.json': {examples[n]['id']: self._nbest(answer, lacking) for n, answer in answers},
    }
    if lacking:
      finite = {examples[n]['id']: min(answer.odds, 1e30) for n, answer in answers}
      tables['null_odds.json'] = finite
    dump = lambda table: json.dumps(table, ensure_ascii=False, indent=1).encode() + b'\n'
    return {name: dump(table) for name, table in tables.items()}

  def records(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> Iterator[dict[str, Any]]:
    """One JSON-able object for each question: id, question, answers (if any), prediction."""
    lacking = self._may_lack(examples)
    for number, answer in self._answers(predictions, examples):
      example = examples[number]
      record = {'id': example['id'], 'question': example['question']}
      if 'answers' in example:
        record['answers'] = [true['text'] for true in example['answers']]
      best = self._nbest(answer, lacking)[:5]
      yield record | {'prediction': self._text(answer, lacking), 'n_best': best}

  def _answers(
    self, predictions: Predictions, examples: Sequence[Example]
  ) -> Iterator[tuple[int, Answer]]:
    """(example, its answer), put together from its windows.

    An answer found in several windows has its best score; no answer has its worst one: a window is
    right to find nothing where another one holds the answer.
    """
    numbers, starts = np.unique(predictions['example_ids'], return_index=True)
    keys = ('scores', 'starts', 'ends', 'null_scores')
    parts = zip(*(np.split(predictions[key], starts[1:]) for key in keys), strict=True)
    for number, (scores, begins, ends, null_scores) in zip(numbers, parts, strict=True):
      text, found = examples[number]['text'], {}
      order = np.argsort(-scores, axis=None, kind='stable')
      flat = zip(scores.flat[order], begins.flat[order], ends.flat[order], strict=True)
      for score, begin, end in flat:
        if score > NO_ANSWER_SCORE:
          found.setdefault(text[begin:end], float(score))
      best = [(score, answer) for answer, score in found.items()]
      yield int(number), Answer(best[: scores.shape[1]], float(null_scores.min()))

  def _text(self, answer: Answer, lacking: bool) -> str:
    """The predicted answer, '' for none."""
    if lacking and answer.odds > self._config.null_threshold:
      return ''
    return answer.candidates[0][1] if answer.candidates else ''

  def _nbest(self, answer: Answer, lacking: bool) -> list[dict[str, Any]]:
    """Answers with the softmax of their scores; no answer is among them where there may be none."""
    found = list(answer.candidates)
    if lacking or not found:
      found = sorted([*found, (answer.null_score, '')], key=lambda pair: -pair[0])
    weights = np.exp([score - found[0][0] for score, _ in found])
    shares = weights / weights.sum()
    return [
      {'text': text, 'probability': round(float(share), 6), 'score': round(score, 6)}
      for (score, text), share in zip(found, shares, strict=True)
    ]


def _f1_of_2(prediction: str, answer: str) -> float:
  return squad.f1(prediction, answer, version_2=True)


def _label_part(row: Mapping[str, str], context: str, where: str) -> Example:
  if not row.get('answers'):
    what = "column 'answers' is empty" if 'answers' in row else "no column 'answers'"
    raise UserError(f'{where}: {what}; of a question without an answer it is []')
  return {'answers': _answers(row['answers'], context, where)}


def _answers(cell: str, context: str, where: str) -> list[dict[str, Any]]:
  """The answers of a cell; UserError for one that is not in the text where it is said to be."""
  try:
    found = json.loads(cell)
    if isinstance(found, dict):
      pairs = list(zip(found['text'], found['answer_start'], strict=True))
    else:
      pairs = [(answer['text'], answer['answer_start']) for answer in found]
    if not all(isinstance(text, str) and type(start) in (int, str) for text, start in pairs):
      raise TypeError('an answer that is no text, or does not begin at a character')
    pairs = [(text, int(start)) for text, start in pairs]
  except (KeyError, TypeError, ValueError, RecursionError):
    raise UserError(
      f'{where}: answers must be {{"text": [...], "answer_start": [...]}}, got {cell[:60]!r}'
    ) from None
  for text, start in pairs:
    if not text.strip():
      raise UserError(f'{where}: an answer is empty')
    if start < 0 or context[start : start + len(text)] != text:
      raise UserError(f'{where}: the answer {text[:40]!r} does not stand at {start} in the context')
  return [{'text': text, 'start': start} for text, start in pairs]
