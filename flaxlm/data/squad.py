"""Questions on paragraphs in SQuAD's json layout (Rajpurkar et al. 2016; 2.0: 2018)."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from flaxlm.config.data import DataConfig
from flaxlm.data import bad_rows, cells, source
from flaxlm.errors import UserError

_KINDS = {str: 'a text', list: 'a list', dict: 'an object'}


def rows(path: epath.Path, config: DataConfig, bad: bad_rows.Handler) -> cells.Rows:
  """('FILE: question ID', columns) of each question, in the order of the file.

  Columns: id, title, context, question, and `answers`, where the file has them, as json: {"text":
  [...], "answer_start": [...]}, empty lists for a question without an answer. They are those of
  TFDS's `squad`.

  Raises:
    UserError: for a file that is not json of this layout; `bad` gets the mistake of a question.
  """
  try:
    file = json.loads(source.whole(path))
  except json.JSONDecodeError as error:
    raise UserError(f'{path}:{error.lineno}: malformed json: {error.msg}') from None
  except (ValueError, RecursionError) as error:  # Numbers too long, lists too deep for Python.
    raise UserError(f'{path}: malformed json: {error}') from None
  if not isinstance(file, dict) or 'data' not in file:
    raise UserError(f'{path}: not in the layout of SQuAD: it has no "data"')
  number = 0
  for place, article in _entries(file, 'data', f'{path}: '):
    for inner, paragraph in _entries(_of(dict, article, place), 'paragraphs', f'{place}.'):
      for where, question in _entries(_of(dict, paragraph, inner), 'qas', f'{inner}.'):
        number += 1
        try:
          question = _of(dict, question, where)
          where = f'{path}: question {question.get("id") or number}'
          yield where, _row(article, paragraph, question, where)
        except UserError as error:
          bad(error)


def _row(
  article: Mapping[str, Any], paragraph: Mapping[str, Any], question: Mapping[str, Any], where: str
) -> dict[str, str]:
  try:
    row = {
      'id': question['id'] if isinstance(question['id'], int) else _text(question, 'id', where),
      'title': article.get('title', ''),
      'context': _text(paragraph, 'context', where),
      'question': _text(question, 'question', where),
    }
    # Of 2.0: "plausible_answers" of a question that has none are not answers.
    if question.get('is_impossible'):
      row['answers'] = {'text': [], 'answer_start': []}
    elif question.get('answers') is not None:
      answers = [
        _of(dict, answer, at) for at, answer in _entries(question, 'answers', f'{where}: ')
      ]
      texts = [_text(answer, 'text', where) for answer in answers]
      starts = [answer['answer_start'] for answer in answers]
      row['answers'] = {'text': texts, 'answer_start': starts}
    if row['id'] == '':
      raise UserError(f"{where}: 'id' is empty")
  except KeyError as error:
    raise UserError(f'{where}: has no {error.args[0]!r}') from None
  return {name: cells.as_text(value, where) for name, value in row.items()}


def _entries(node: Mapping[str, Any], key: str, prefix: str) -> Iterator[tuple[str, Any]]:
  """(place, entry) of the list node[key]; `prefix`: of places, in messages."""
  if key not in node:
    raise UserError(f'{prefix.rstrip(": .")}: has no {key!r}')
  for i, entry in enumerate(_of(list, node[key], f'{prefix}{key}')):
    yield f'{prefix}{key}[{i}]', entry


def _text(node: Mapping[str, Any], key: str, where: str) -> str:
  return _of(str, node[key], f'{where}: {key!r}')


def _of(kind: type, value: Any, place: str) -> Any:
  """The value; UserError, naming its place, if it is of another kind."""
  if not isinstance(value, kind):
    raise UserError(f'{place} must be {_KINDS[kind]}, got {json.dumps(value)[:40]}')
  return value
