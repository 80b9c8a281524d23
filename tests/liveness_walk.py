"""The walk over the fields of a config: what a run does with one value of a field, and another."""

import functools
import hashlib
import json

import jax
import pytest
import tiny
from liveness_tables import FIRST, PLACES, SMALL, VALUES

from flaxlm.config import schema, tree
from flaxlm.config.field import SET
from flaxlm.data import tokenizer as tokenizers
from flaxlm.errors import UserError
from flaxlm.paths import leaf_paths


def can_be_read(rules, names):
  """Whether a field is read under one of the names of its node."""
  wanted = (rules.when or {}).get('name')
  return wanted is None or not names or bool({*wanted} & {*names})


def walk():
  """(dotted key, file or '', its class) of every field that can be set."""
  nodes = [('optimizer', '', schema.OptimizerConfig), ('data', '', schema.DataConfig)]
  nodes += [('tokenizer', '', schema.TokenizerConfig), ('tuning', '', schema.TuningConfig)]
  files = {}
  for node, package in tree.PACKAGES.items():
    classes = {}
    for name in tree.named_files(package):
      classes.setdefault(tree.node_class(node, name), []).append(name)
    nodes += [(node, names[0], cls) for cls, names in classes.items()]
    files |= classes
  return [
    (f'{node}.{name}', file, cls)
    for node, file, cls in nodes
    for name, (_, rules, _) in tree.fields(cls).items()
    if not rules.derived
    and not (file and name == 'name')
    and can_be_read(rules, files.get(cls, ()))
  ]


FIELDS = walk()
WALKED = {cls for _, _, cls in FIELDS}


def is_inherited(key, cls):
  """Whether the field is walked with the class that it comes from, too."""
  name = key.partition('.')[2]
  return any(base in WALKED and name in tree.fields(base) for base in cls.__mro__[1:])


def write_corpus(folder):
  """Fills a folder with what the values of the tables name: texts, rows, tokenizers."""
  tiny.write_corpus(folder)
  config = schema.TokenizerConfig(name='characters', sentinels=20)
  tokenizers.train(config, [(folder / 'other.txt').read_text()]).save(folder / 'tokenizer')
  (folder / 'published').mkdir()
  letters = ['<|endoftext|>', '\u0120', '.', *map(chr, range(65, 91)), *map(chr, range(97, 123))]
  vocab = {letter: id for id, letter in enumerate(letters)}
  (folder / 'published' / 'vocab.json').write_text(json.dumps(vocab))
  (folder / 'published' / 'merges.txt').write_text('#version: 0.2\n')
  return folder


# --------------------------------------------------------------------------- what a run would do


class Run:
  """What a config leads to, each part computed when it is asked for."""

  def __init__(self, config, folder):
    self.experiment = tiny.build(config, folder / 'no_run')

  @functools.cached_property
  def batches(self):
    """Digest of training batches and of the first of every evaluation set."""
    e = self.experiment
    found = {f'train {i}': e.train_data.batch(i) for i in (0, 1, 60)}
    found |= {name: data.batch(0) for name, data in e.eval_data.items()}
    sha = hashlib.sha256()
    for name, batch in found.items():
      for key in sorted(batch):
        sha.update(f'{name} {key} {batch[key].shape}'.encode() + batch[key].tobytes())
    return sha.hexdigest()

  @functools.cached_property
  def shapes(self):
    leaves = leaf_paths(self.experiment.abstract_state.params)
    return {path: (leaf.shape, leaf.dtype) for path, leaf in leaves.items()}

  @functools.cached_property
  def step(self):
    return self.experiment.train_step.lower(
      self.experiment.abstract_state, self.experiment.train_data.batch(0)
    ).as_text()

  @functools.cached_property
  def init(self):
    return self.experiment.init.lower(jax.random.key(0)).as_text()


@functools.lru_cache(maxsize=16)
def run(place, folder, changes):
  return Run(tiny.load(place, folder, SMALL + changes), folder)


def effect(base, other):
  """The first part of a run in which two differ, or ''."""
  parts = ('batches', 'shapes', 'step', 'init')
  return next((part for part in parts if getattr(base, part) != getattr(other, part)), '')


# --------------------------------------------------------------------------------- other values


def candidates(key, kind, rules, value, folder):
  """Texts of other values: of a choice all of them, else some of which the first valid one will do.

  Fails for a field of which neither the rules nor VALUES tell another value.
  """
  if key in VALUES:
    return [t for t in (text.format(folder) for text in VALUES[key]) if t != str(value)]
  if rules.choices is not None:
    return [str(choice) for choice in rules.choices if choice != value]
  if kind.item is bool:
    return [str(not value)]
  if kind.item is str or kind.is_tuple:
    pytest.fail(f'{key}: say in VALUES what else it can be')
  if value is None:
    found = [(rules.low or 1) * factor for factor in (1, 2, 16)]
  elif kind.item is int:
    found = [value + 1, 2 * value, value // 2, rules.low]
  else:
    found = [value / 2, 2 * value, 0.3, 0.01]
  return [str(x) for x in found if x is not None and x != value]


def siblings(config, key, rules):
  """What to set so that the field is read, as changes; None where that is another experiment."""
  node = key.partition('.')[0]
  changes = []
  for name, values in (rules.when or {}).items():
    name = name.removeprefix('config.') if name.startswith('config.') else f'{node}.{name}'
    value = tree.flatten(config)[name]
    if value in values or (SET in values and value):
      continue
    if values[0] == SET or name in ('model.name', 'task.name', 'objective.name'):
      return None
    changes.append((name, str(values[0])))
  return tuple(changes)


def bases(key, cls, rules, folder):
  """(recipe, changes after which the field is read); recipes where nothing is needed come first."""
  found = []
  needed = FIRST.get(key) or FIRST.get((cls.__module__.rpartition('.')[2], key), ())
  first = tuple((name, text.format(folder)) for name, text in needed)
  for place in PLACES:
    try:
      config = tiny.load(place, folder, SMALL + first)
    except UserError:
      continue  # It lacks a field of FIRST.
    if type(getattr(config, key.partition('.')[0])) is cls:
      changes = siblings(config, key, rules)
      found += [] if changes is None else [(place, first + changes)]
  if not found and key.startswith('objective.'):
    # An objective without a recipe of its own: on those of its family, by an override.
    name = (('objective.name', cls.__module__.rpartition('.')[2]),)
    for place in PLACES:
      changes = siblings(tiny.load(place, folder, SMALL + name), key, rules)
      found += [] if changes is None else [(place, name + changes)]
  assert found, f'{key}: no recipe has it'
  return sorted(found, key=lambda base: len(base[1]))


def attempts(key, cls, rules, folder, text):
  """(run as it is, run with the other value) of each recipe that takes it."""
  for place, changes in bases(key, cls, rules, folder):
    try:
      yield run(place, folder, changes), run(place, folder, (*changes, (key, text)))
    except UserError:
      continue  # Not a value for this recipe: another may take it.


def values_of(key, cls, folder):
  """(rules, other values) of a field, as seen from the first recipe that has it."""
  name = key.partition('.')[2]
  kind, rules, _ = tree.fields(cls)[name]
  place, changes = bases(key, cls, rules, folder)[0]
  config = tiny.load(place, folder, SMALL + changes)
  value = getattr(getattr(config, key.partition('.')[0]), name)
  return rules, candidates(key, kind, rules, value, folder)
