"""GLUE's own files (Wang et al. 2019), as rows with the column names that TFDS gives them.

They are tab-separated without any quoting: a quotation mark may stand alone. CoLA's train.tsv and
dev.tsv have no header, nor have the original files of the STS benchmark, whose rows may also have
more columns than their first. Test files have no labels.
"""

import dataclasses
from collections.abc import Mapping

from etils import epath

from flaxlm.data import bad_rows, source
from flaxlm.data.cells import Rows
from flaxlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Subset:
  """A data set of GLUE.

  columns: of the texts, one or two; labels: in the order of their numbers, () where the label is a
  number itself; names: column of the file -> column here; numbers: number of the column, in a file
  without a header -> column here.
  """

  columns: tuple[str, ...]
  labels: tuple[str, ...]
  names: Mapping[str, str]
  numbers: Mapping[int, str] = dataclasses.field(default_factory=dict)


ENTAILMENT = ('entailment', 'not_entailment')
PAIR = {'sentence1': 'sentence1', 'sentence2': 'sentence2'}
SUBSETS = {
  'cola': Subset(
    ('sentence',),
    ('unacceptable', 'acceptable'),
    {'sentence': 'sentence'},
    {1: 'label', 3: 'sentence'},
  ),
  'sst2': Subset(
    ('sentence',), ('negative', 'positive'), {'sentence': 'sentence', 'label': 'label'}
  ),
  'mrpc': Subset(
    ('sentence1', 'sentence2'),
    ('not_equivalent', 'equivalent'),
    {'Quality': 'label', '#1 String': 'sentence1', '#2 String': 'sentence2'},
  ),
  'qqp': Subset(
    ('question1', 'question2'),
    ('not_duplicate', 'duplicate'),
    {'question1': 'question1', 'question2': 'question2', 'is_duplicate': 'label'},
  ),
  'stsb': Subset(
    ('sentence1', 'sentence2'),
    (),
    PAIR | {'score': 'label'},
    {4: 'label', 5: 'sentence1', 6: 'sentence2'},
  ),
  'mnli': Subset(
    ('premise', 'hypothesis'),
    ('entailment', 'neutral', 'contradiction'),
    {'sentence1': 'premise', 'sentence2': 'hypothesis', 'gold_label': 'label'},
  ),
  'qnli': Subset(
    ('question', 'sentence'),
    ENTAILMENT,
    {'question': 'question', 'sentence': 'sentence', 'label': 'label'},
  ),
  'rte': Subset(('sentence1', 'sentence2'), ENTAILMENT, PAIR | {'label': 'label'}),
}


def rows(path: epath.Path, name: str, bad: bad_rows.Handler) -> Rows:
  """('FILE:LINE', column -> text) of a file of the subset `name`; only columns that are used.

  Raises:
    UserError: for a file that has neither the header nor the columns of this subset; `bad` gets the
      mistake of a row.
  """
  subset = SUBSETS[name]
  columns: dict[int, str] | None = None
  width, exact = 0, True
  for number, cells in source.tsv_cells(path, bad):
    if columns is None:
      found = {i: subset.names[cell] for i, cell in enumerate(cells) if cell in subset.names}
      headed = set(subset.columns) <= set(found.values())
      columns = found if headed else dict(subset.numbers)
      width, exact = (len(cells), True) if headed else (max(columns, default=0) + 1, False)
      if not columns or len(cells) < width:
        wanted = ', '.join(subset.names)
        raise UserError(f'{path}:{number}: not a file of {name}: its columns are {wanted}')
      if headed:
        continue
    if len(cells) < width or (exact and len(cells) != width):
      bad(UserError(f'{path}:{number}: {len(cells)} columns, but {name} has {width}'))
    else:
      yield f'{path}:{number}', {column: cells[i] for i, column in columns.items()}
