"""The splits of a corpus or of labelled rows: what trains, what is held out, what tests."""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxlm import files, terminal
from flaxlm.config.data import DataConfig
from flaxlm.data import cache, source
from flaxlm.data.bad_rows import BadRows
from flaxlm.data.cells import LocatedRow
from flaxlm.errors import UserError

# No names of sets: the splits, and what eval.py writes beside the sets.
_TAKEN = ('train', 'test', 'workdir', 'checkpoint', 'overrides')


@dataclasses.dataclass(frozen=True)
class Documents:
  """Some documents of a corpus; `located()` starts over each time it is called.

  num_documents: how many there are; identity: what they hash to, JSON-able; located: (where it
  stands, text) of each; sources: of a mixture, name -> documents of each source; weights: of these,
  relative to each other.
  """

  name: str
  num_documents: int
  identity: Any
  located: Callable[[], Iterator[tuple[str, str]]]
  sources: Mapping[str, 'Documents'] = dataclasses.field(default_factory=dict)
  weights: tuple[float, ...] = ()

  def texts(self) -> Iterator[str]:
    """The text of each document."""
    return (text for _, text in self.located())


def training(config: DataConfig) -> Documents:
  """The documents of `config.train`, without those that are held out."""
  return _joined(config, split=not config.validation)


def validation(config: DataConfig) -> dict[str, Documents]:
  """The validation sets by name; 'validation' is the one that has no name or is held out.

  The parts that are held out of a mixture have the names of its sources.
  """
  if config.validation:
    found = places(config.validation)
    return {name: _whole(config, place, 'validation') for name, place in found.items()}
  return {
    name or 'validation': _part(config, _training_documents(place, config), first=False, split=True)
    for name, place in training_places(config).items()
  }


def against(config: DataConfig, text: str) -> dict[str, Documents]:
  """The documents of PLACE or NAME=PLACE,NAME=PLACE, to be compared with those of `train`."""
  found = _named(text, '--against', ('train',)) or {'against': text}
  return {name: _whole(config, place, 'test', '--against') for name, place in found.items()}


def everything(config: DataConfig) -> Documents:
  """The documents of `config.train`, with those that training would hold out."""
  return _joined(config, split=False)


def _joined(config: DataConfig, split: bool) -> Documents:
  """The first part of each source of `config.train`, or all of it; of one place, its documents."""
  _check_reading(config)
  parts = {
    name: _part(config, _training_documents(place, config), first=True, split=split)
    for name, place in training_places(config).items()
  }
  if '' in parts:
    return parts['']
  return Documents(
    config.train,
    sum(part.num_documents for part in parts.values()),
    {'weights': config.weights, 'sources': [part.identity for part in parts.values()]},
    lambda: itertools.chain.from_iterable(part.located() for part in parts.values()),
    parts,
    config.weights or (1.0,) * len(parts),
  )


def _check_reading(config: DataConfig) -> None:
  """Raises UserError for a setting of how text is read that none of the places has a use for."""
  found = [('train', place) for place in training_places(config).values()]
  if config.validation:
    found += [('validation', place) for place in places(config.validation).values()]
  if config.test:
    found.append(('test', config.test))
  nothing = 'would do nothing: config.data.train'
  if config.documents == 'blank_line' and {place for _, place in found} == {'embedded'}:
    raise UserError(f'config.data.documents: {nothing}=embedded has documents of its own')
  if config.text_column != DataConfig().text_column and not any(
    source.has_columns(place, f'config.data.{key}') for key, place in found
  ):
    raise UserError(f'config.data.text_column: {nothing}={config.train} has no columns')


def test(config: DataConfig) -> Documents:
  """The documents of `config.test`."""
  return _whole(config, config.test, 'test')


def places(text: str) -> dict[str, str]:
  """Parses PLACE or NAME=PLACE,NAME=PLACE of `config.data.validation`."""
  return _named(text, 'config.data.validation') or {'validation': text}


def training_places(config: DataConfig) -> dict[str, str]:
  """Name -> place of the sources of `config.train`; one that has no name is ''."""
  found = _named(config.train, 'config.data.train') or {'': config.train}
  if config.weights and '' in found:
    raise UserError('config.data.weights: config.data.train must be NAME=PLACE,NAME=PLACE for them')
  if config.weights and len(config.weights) != len(found):
    raise UserError(
      f'config.data.weights: {len(config.weights)} for the {len(found)} sources of '
      f'config.data.train ({", ".join(found)}); give one each'
    )
  return found


def _named(text: str, field: str, taken: Sequence[str] = _TAKEN) -> dict[str, str]:
  """Name -> place of NAME=PLACE,NAME=PLACE; empty where the text does not begin like that.

  Empty too where it is itself a file or a glob that matches, such as `lang=en/*.txt`.

  Raises UserError, naming the field, for other text that does, and for names that are `taken`.
  """
  if not re.match(r'[\w-]+=', text) or source.matching(text):
    return {}
  found: dict[str, str] = {}
  for part in text.split(','):
    name, equals, place = part.partition('=')
    if not equals or not re.fullmatch(r'[\w-]+', name) or not place or name in found:
      raise UserError(f'{field}: NAME=PLACE,NAME=PLACE expected, got {text!r}')
    found[name] = place
  wrong = [name for name in found if name in taken]
  if wrong:
    raise UserError(f'{field}: {wrong[0]!r} is not a name for a set')
  return found


def rows(
  config: DataConfig,
  training: bool = True,
  readers: Mapping[str, source.Reader] | None = None,
  bad: BadRows | None = None,
  held_together: str = '',
) -> dict[str, list[LocatedRow]]:
  """Rows of each split for tasks: {'train': [('FILE:LINE', column -> text), ...], ...}.

  Where nothing is given to validate on, a fixed part of the training rows, chosen at random, is
  held out: tables are often sorted by label.

  Args:
    training: with 'train'; without, also 'test' where `config.test` is set.
    readers: of the task's own file formats, as in `source.rows`.
    bad: counts the rows that cannot be read.
    held_together: column, of which rows with the same cell are all held out or all trained on.

  Raises:
    UserError: for a split without rows, and for what cannot be read.
  """
  bad = bad or BadRows('error')
  if '' not in training_places(config):
    raise UserError('config.data.train: only running text can be mixed; a task reads one place')

  def read(place: str, split: str, name: str, most: int | None = None) -> list[LocatedRow]:
    key = f'config.data.{split}'
    found = list(
      itertools.islice(source.rows(place, config, split, readers, bad.of(name), key), most)
    )
    if not found:
      bad.report()
      raise UserError(f'{key}: no rows in {place!r}')
    return found

  splits = {}
  if training or not config.validation:
    splits['train'] = train = read(config.train, 'train', 'train', config.max_rows)
  if config.validation:
    for name, place in places(config.validation).items():
      splits[name] = read(place, 'validation', name)
  else:
    splits['train'], splits['validation'] = _drawn(train, config, held_together)
  if not training:
    splits.pop('train', None)
    if config.test:
      splits['test'] = read(config.test, 'test', 'test')
  return splits


def _drawn(
  rows: list[LocatedRow], config: DataConfig, column: str
) -> tuple[list[LocatedRow], list[LocatedRow]]:
  """Rows to train on, and the share config.holdout of them, or of what `column` holds of them."""
  groups: dict[Any, list[int]] = {}
  for i, (_, row) in enumerate(rows):
    groups.setdefault(row.get(column, i) if column else i, []).append(i)
  members = list(groups.values())
  what = f'rows with {len(members)} {column}' if column else f'{len(rows)} rows'
  number = _num_first(len(members), config, what)
  order = np.random.default_rng(0).permutation(len(members))
  first, last = (
    [rows[i] for i in sorted(i for group in part for i in members[group])]
    for part in (order[:number], order[number:])
  )
  return first, last


def _num_first(number: int, config: DataConfig, what: str = 'the text') -> int:
  if number < 2:
    raise UserError(f'config.data.holdout: {what} cannot be split; set config.data.validation')
  return min(max(int(number * (1 - config.holdout)), 1), number - 1)


def _training_documents(place: str, config: DataConfig) -> source.Source:
  return source.documents(place, config, 'train', 'config.data.train')


def _whole(config: DataConfig, place: str, split: str, key: str = '') -> Documents:
  config = dataclasses.replace(config, max_rows=None)
  found = source.documents(place, config, split, key or f'config.data.{split}')
  return _part(config, found, first=True, split=False)


def _part(config: DataConfig, found: source.Source, first: bool, split: bool) -> Documents:
  place = found.name
  identity = {'source': found.identity, 'max_rows': config.max_rows}
  located = lambda: itertools.islice(found.located(), config.max_rows)
  number = _count(config, found.name, identity, located)
  if not split:
    return Documents(place, number, identity, located)
  identity = identity | {'holdout': config.holdout, 'part': 'first' if first else 'last'}
  if number == 1:
    return Documents(place, 1, identity, lambda: _cut(next(located()), config.holdout, first))
  middle = _num_first(number, config)
  if first:
    return Documents(place, middle, identity, lambda: itertools.islice(located(), middle))
  return Documents(
    place, number - middle, identity, lambda: itertools.islice(located(), middle, None)
  )


def _cut(document: tuple[str, str], holdout: float, first: bool) -> Iterator[tuple[str, str]]:
  where, text = document
  middle = int(len(text) * (1 - holdout))
  yield (where, text[:middle]) if first else (where, text[middle:])


def _count(
  config: DataConfig, name: str, identity: Any, located: Callable[[], Iterator[Any]]
) -> int:
  """The number of documents; counted once, then kept in the cache."""
  path = cache.directory(config) / 'counts' / f'{cache.key(identity)}.json'
  if path.exists():
    with cache.intact(path):
      return json.loads(path.read_text())['documents']
  terminal.phase('data', f'counting the documents of {name}')
  number = sum(1 for _ in located())
  if not number:
    raise UserError(f'config.data: {name} has no documents that are not empty')
  files.write_text(path, json.dumps({'documents': number}))
  return number
