"""What a run reads: its tokenizer, the examples of labelled rows, batches for every set."""

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from flaxlm import terminal
from flaxlm.config import tree
from flaxlm.config.schema import Config
from flaxlm.data import cache, pipeline, splits
from flaxlm.data.augment import Augmentation
from flaxlm.data.bad_rows import BadRows, Handler
from flaxlm.data.cells import LocatedRow
from flaxlm.data.tokenizer import Tokenizer, for_corpus
from flaxlm.errors import UserError
from flaxlm.objectives.base import Objective
from flaxlm.tasks.base import Task
from flaxlm.training import checkpoint

_SHOWN_LABELS = 10
Examples = Mapping[str, Sequence[Mapping[str, Any]]]
# Training batches, where there are any, and evaluation sets.
Data = tuple[pipeline.Pipeline | None, Mapping[str, pipeline.EvalPipeline]]


def open_tokenizer(config: Config, workdir: epath.Path) -> Tokenizer:
  """That of the run where it has a checkpoint; else that of the config."""
  if checkpoint.steps_in(workdir / 'checkpoints'):
    return Tokenizer.load(workdir / 'tokenizer')
  if config.tokenizer.path:
    return for_corpus(config, None)
  if config.task.name:
    task, bad = task_of(config), BadRows(config.data.on_bad_row)
    rows = rows_of(task, config, True, bad)['train']
    examples = parsed(task, rows, bad.of('train'))
    texts = [text for example in examples for text in task.texts(example)]
    identity = {'rows': cache.key(texts)}
    return for_corpus(
      config,
      splits.Documents(
        config.data.train, len(texts), identity, lambda: (('', text) for text in texts)
      ),
    )
  return for_corpus(config, splits.training(config.data))


def task_of(config: Config) -> Task | None:
  """The task that the config names, or None for running text."""
  if not config.task.name:
    return None
  return tree.load_class('flaxlm.tasks', config.task.name, Task)(config)


def rows_of(
  task: Task, config: Config, training: bool, bad: BadRows
) -> dict[str, list[LocatedRow]]:
  """`splits.rows` as the task reads its files and holds rows together.

  A row of an evaluation set whose cell of the task's column `unique` stands in another row of it
  goes to `bad`.
  """
  sets = splits.rows(config.data, training, task.readers, bad, task.held_together)
  for name in sets if task.unique else ():
    if name != 'train':
      sets[name] = _once(sets[name], task.unique, bad.of(name))
  return sets


def _once(rows: Iterable[LocatedRow], column: str, bad: Handler) -> list[LocatedRow]:
  """The rows, without those whose cell of `column` is that of one before; `bad` gets these."""
  found, seen = [], set()
  for where, row in rows:
    cell = row.get(column, '')
    if cell and cell in seen:
      bad(UserError(f'{where}: the {column} {cell!r} is there twice; each row needs its own'))
    else:
      seen.add(cell)
      found.append((where, row))
  return found


def read_examples(config: Config, training: bool, bad: BadRows) -> tuple[Config, Examples]:
  """The parsed rows of each split, and the config with what the rows of train decide (labels).

  'train' is there only for training, 'test' only without. `bad` counts the rows left out.
  """
  sets = rows_of(task_of(config), config, training, bad)
  # What decides the labels comes first, so that the others are held to them; a label may be only in
  # rows that were held out of train.
  deciding = {'train'} if config.data.validation else {'train', 'validation'}
  examples = {}
  if training:
    examples |= _parsed_sets(config, {n: sets.pop(n) for n in list(sets) if n in deciding}, bad)
    decided = task_of(config).discover(list(itertools.chain(*examples.values())))
    config = dataclasses.replace(config, task=dataclasses.replace(config.task, **decided))
    _say_labels(decided.get('labels', ()), examples['train'])
  examples |= _parsed_sets(config, sets, bad)
  bad.report()
  return config, examples


def _parsed_sets(
  config: Config, sets: Mapping[str, list[LocatedRow]], bad: BadRows
) -> dict[str, list[dict[str, Any]]]:
  """The examples of sets of rows; UserError for one of which none is left."""
  examples, task = {}, task_of(config)
  for name, rows in sets.items():
    has_label = task.has_label if name == 'test' else Task.has_label
    examples[name] = parsed(task, rows, bad.of(name), has_label)
    if not examples[name]:
      bad.report()
      raise UserError(f'config.data.on_bad_row: no row of {name!r} is left')
  return examples


def _say_labels(labels: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> None:
  """How many training rows, or words of them, have each label: a wrong column shows there."""
  if labels:
    cells = [example['label'] for example in examples]
    counts = Counter(itertools.chain(*([c] if isinstance(c, str) else c for c in cells)))
    shown = ', '.join(f'{label} ({counts[label]:,})' for label in labels[:_SHOWN_LABELS])
    more = ', ...' * (len(labels) > _SHOWN_LABELS)
    terminal.say(f'data.train: {len(labels)} labels: {shown}{more}')


def parsed(
  task: Task,
  rows: Iterable[LocatedRow],
  bad: Handler,
  has_label: Callable[[Mapping[str, str]], bool] = Task.has_label,
) -> list[dict[str, Any]]:
  """The examples of rows; `bad` gets the mistake of a row, which is left out if that returns.

  has_label: whether the label of a row must be one that can be used; otherwise, one that cannot
    is none.
  """
  examples = []
  for where, row in rows:
    try:
      examples.append(task.parse(row, where, has_label(row)))
    except UserError as error:
      bad(error)
  return examples


def make_data(
  config: Config,
  tokenizer: Tokenizer,
  objective: Objective,
  examples: Examples,
  parts: pipeline.Parts,
  training: bool,
) -> Data:
  """Batches of the examples or, without any, of running text; `training`: see `build`."""
  if examples:
    return _labelled(config, objective, examples, parts)
  evals = pipeline.eval_pipelines(config, tokenizer, objective, parts, test=not training)
  train = pipeline.train_pipeline(config, tokenizer, objective, parts) if training else None
  return train, evals


def rows_digest(examples: Sequence[Mapping[str, Any]]) -> str:
  """What all examples hash to; of a value that JSON does not know, its type."""
  known = lambda value: value.tolist() if hasattr(value, 'tolist') else type(value).__name__
  found = hashlib.sha256()
  for example in examples:
    found.update(json.dumps(example, sort_keys=True, skipkeys=True, default=known).encode())
  return found.hexdigest()


def _labelled(
  config: Config, objective: Objective, examples: Examples, parts: pipeline.Parts
) -> Data:
  """Training batches, where there are training examples, and evaluation sets."""
  train, evals = None, {}
  for name, rows in examples.items():
    with terminal.bar(f'tokenise {name}', len(rows), 'rows') as bar:
      items = objective.items(rows)
      bar.advance(len(rows))
    if name == 'train':
      packed = pipeline.PackedItems(objective, items, config.seed, config.data.pack, config.data)
      augment = Augmentation(config.data, objective, config.objective.name)
      augment.check(rows, getattr(config.task, 'prefix', ''))
      train = pipeline.Pipeline(
        config, objective, packed, (), parts, augment if augment.is_on else None, rows_digest(rows)
      )
    else:
      packed = pipeline.PackedItems(objective, items, None, data=config.data)
      evals[name] = pipeline.EvalPipeline(config, objective, packed, parts)
  return train, evals
