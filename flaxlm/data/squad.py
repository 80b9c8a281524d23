"""Questions on paragraphs in SQuAD's json layout (Rajpurkar et al. 2016; 2.0: 2018)."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from flaxlm.data import bad_rows, source
from flaxlm.errors import UserError


def rows(
  path: epath.Path, config: Any, bad: bad_rows.Handler
) -> Iterator[tuple[str, dict[str, str]]]:
  """('FILE: question ID', columns) of each question, in the order of the file.

  Columns: id, title, context, question, and `answers`, where the file has them, as json: {"text":
  [...], "answer_start": [...]}, empty lists for a question without an answer. They are those of
  TFDS's `squad`.

  Raises:
    UserError: for a file that is not json of this layout; `bad` gets the mistake of a question.
  """
  try:
    articles = json.loads(source.whole(path))['data']
  except json.JSONDecodeError as error:
    raise UserError(f'{path}:{error.lineno}: malformed json: {error.msg}') from None
  except (KeyError, TypeError):
    raise UserError(f'{path}: not in the layout of SQuAD: it has no "data"') from None
  number = 0
  for article in articles:
    for paragraph in article.get('paragraphs', ()):
      for question in paragraph.get('qas', ()):
        number += 1
        where = f'{path}: question {question.get("id", number)}'
        try:
          yield where, _row(article, paragraph, question, where)
        except UserError as error:
          bad(error)


def _row(
  article: Mapping[str, Any], paragraph: Mapping[str, Any], question: Mapping[str, Any], where: str
) -> dict[str, str]:
  try:
    row = {
      'id': str(question['id']),
      'title': article.get('title', ''),
      'context': paragraph['context'],
      'question': question['question'],
    }
    # Of 2.0: "plausible_answers" of a question that has none are not answers.
    answers = question.get('answers')
    if question.get('is_impossible'):
      answers = []
    if answers is not None:
      texts = [answer['text'] for answer in answers]
      starts = [answer['answer_start'] for answer in answers]
      row['answers'] = json.dumps({'text': texts, 'answer_start': starts}, ensure_ascii=False)
  except KeyError as error:
    raise UserError(f'{where}: has no {error.args[0]!r}') from None
  return row
