"""Tagged sentences in CoNLL's layout: a word a line, columns beside it, a blank line between.

Columns stand apart by tabs, or by spaces in a file that has no tab. A line that begins a document
(-DOCSTART-) ends a sentence. CoNLL-U's comments are passed over: `# key = value` and, where columns
stand apart by tabs, any line that begins with # and has none (`# newpar`); and so are, in sentences
whose first of at least three such columns numbers the words, the lines of ranges (`3-4 zum`) and of
empty nodes (`5.1`).
"""

import json
import re
from collections.abc import Iterator

from etils import epath

from flaxlm.config.data import DataConfig
from flaxlm.data import bad_rows, source
from flaxlm.data.cells import Rows
from flaxlm.errors import UserError

DOCUMENT = '-DOCSTART-'
COMMENT = re.compile(r'#[^\t]* = [^\t]*$')
# CoNLL-U's number of a word; of a range of words that are written as one; of a word that is not
# written, which stands behind the word of the first number.
NUMBERED = re.compile(r'(?P<word>\d+)|(?P<first>\d+)-(?P<last>\d+)|(?P<behind>\d+)\.\d+')


def rows(path: epath.Path, config: DataConfig, bad: bad_rows.Handler) -> Rows:
  """('FILE:LINE', columns) of each sentence; a cell is a json list, with an entry for each word.

  The columns are `tokens` (the first) and, if there are more, `tags` (the last); and all of them by
  their numbers, from 0. A sentence with a line that has not as many columns as the others goes to
  `bad` whole, as does one with a line that is not UTF-8.
  """
  tabs = _has_tabs(path)
  sentence: list[tuple[int, list[str]]] = []
  broken: list[UserError] = []
  ended = lambda: _sentence(path, _words(sentence) if tabs else sentence, broken, bad)
  for number, line in _lines(path, broken):
    if not line.strip() or line.startswith(DOCUMENT):
      yield from ended()
      sentence = []
    elif '\t' in line:
      word, *cells = line.split('\t')
      sentence.append((number, [word, *(cell.strip() for cell in cells)]))
    elif not COMMENT.match(line) and not (tabs and line.startswith('#')):
      # Other white space than blanks, such as U+00A0, is part of a word.
      sentence.append((number, re.split(' +', line.strip(' '))))
  yield from ended()


def _words(sentence: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
  """The lines of words; all, unless the first column numbers these as CoNLL-U does."""
  words: list[tuple[int, list[str]]] = []
  for line in sentence:
    found = NUMBERED.fullmatch(line[1][0]) if len(line[1]) > 2 else None
    if not found:
      return sentence
    word, first, last, behind = (int(n) if n else None for n in found.groups())
    if word == len(words) + 1:
      words.append(line)
    elif behind != len(words) and (first != len(words) + 1 or last <= first):
      return sentence
  return words or sentence


def _has_tabs(path: epath.Path) -> bool:
  """Whether columns stand apart by tabs: whether the first word's line has one."""
  for _, line in source.lines(path, 'surrogateescape'):
    if line.strip() and not line.startswith(DOCUMENT) and ('\t' in line or line[0] != '#'):
      return '\t' in line
  return False


def _lines(path: epath.Path, broken: list[UserError]) -> Iterator[tuple[int, str]]:
  """Lines of the file; one that is not UTF-8 is noted in `broken`, and left out."""
  yield from source.whole_lines(path, broken.append)


def _sentence(
  path: epath.Path,
  sentence: list[tuple[int, list[str]]],
  broken: list[UserError],
  bad: bad_rows.Handler,
) -> Rows:
  """The row of a sentence, if it is whole. Empties `broken`."""
  mistakes = list(broken)
  broken.clear()
  if not mistakes and sentence:
    width = len(sentence[0][1])
    mistakes = [
      UserError(f'{path}:{number}: {len(cells)} columns, but the sentence begins with {width}')
      for number, cells in sentence
      if len(cells) != width
    ]
  if mistakes:
    bad(mistakes[0])
  elif sentence:
    columns = [
      json.dumps(cells, ensure_ascii=False) for cells in zip(*(c for _, c in sentence), strict=True)
    ]
    row = {str(i): column for i, column in enumerate(columns)} | {'tokens': columns[0]}
    yield f'{path}:{sentence[0][0]}', row | ({'tags': columns[-1]} if width > 1 else {})
