"""A Hugging Face folder as flaxlm sees it, and back; the commands and the tests stand on this."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from flaxlm.config.transformer import TransformerConfig
from flaxlm.errors import UserError, nearest
from flaxlm.files import read_json
from flaxlm.interop import engine, mapping
from flaxlm.interop.family import Family, Head
from flaxlm.interop.files import Tensors
from flaxlm.interop.rules import Entry, Rule

CONFIG = 'config.json'
# What an import leaves in WORKDIR/hf beside config.json: names, dtypes and order of the tensors;
# and those that no parameter holds.
MANIFEST = 'manifest.json'
KEPT = 'kept.safetensors'


@dataclasses.dataclass(frozen=True)
class Public:
  """What a folder, or a workdir to be written as one, is in terms of its family.

  prefix: of the trunk's tensors; labels: names of the classes, in the order of the head.
  """

  family: Family
  architecture: str
  head: Head
  model: TransformerConfig
  config_json: Mapping[str, Any]
  prefix: str
  labels: tuple[str, ...]

  @property
  def entries(self) -> list[Entry]:
    """The family's table for this model; without the heads, where the class has none."""
    entries = self.family.table(self.model, self.head, self.prefix)
    if not self.head.trunk_only:
      return entries
    heads = lambda e: isinstance(e, Rule) and not e.optional and engine.in_head(e.paths[0])
    return [entry for entry in entries if not heads(entry)]

  @property
  def start(self) -> int | None:
    """The id that the decoder of an encoder-decoder starts with; None for another model."""
    if self.family.start_id is None:
      return None
    said = mapping.value_of(self.config_json, 'decoder_start_token_id', int, None)
    return self.family.start_id if said is None else said


class Canonical:
  """Tensors under the names of the family's table, whichever release wrote them."""

  def __init__(self, source: engine.Source, family: Family):
    self._source = source
    self._names = {family.table_name(name): name for name in source.shapes}
    self.dtypes = {name: source.dtypes[own] for name, own in self._names.items()}
    self.shapes = {name: tuple(source.shapes[own]) for name, own in self._names.items()}

  def read(self, name: str) -> np.ndarray:
    """One tensor, by its name in the table."""
    return self._source.read(self._names[name])


def describe(config_json: Mapping[str, Any], names: Iterable[str]) -> Public:
  """What config.json and the names of the tensors say of a folder.

  Raises:
    UserError: names what is not supported.
  """
  family = mapping.find_family(config_json)
  names = [family.table_name(name) for name in names]
  config_json = family.amended(config_json, names)
  architecture, head = mapping.head_of(family, config_json)
  vocab_size = mapping.value_of(config_json, 'vocab_size', int, None)
  if vocab_size is None or vocab_size < 1:
    raise UserError(f'config.json: vocab_size={vocab_size!r} is not a number of tokens')
  model = mapping.model_config(family, config_json, vocab_size)
  prefix = mapping.prefix_of(family, head)
  prefix = prefix if any(name.startswith(prefix) for name in names) else ''
  head, labels = _labelled(head, config_json)
  return Public(family, architecture, head, model, config_json, prefix, labels)


def _labelled(head: Head, config_json: Mapping[str, Any]) -> tuple[Head, tuple[str, ...]]:
  """(the head, names of its labels); a number is learned without any."""
  if head.objective not in ('classification', 'regression', 'multi_label', 'tagging'):
    return head, ()
  labels = _labels(config_json)
  one = len(labels) == 1
  if one and head.objective == 'classification' and config_json.get('problem_type') is None:
    head = dataclasses.replace(head, objective='regression')
  if head.objective == 'regression':
    if not one:
      raise UserError(
        f"config.json: problem_type='regression' of {len(labels)} numbers is not supported, only 1"
      )
    return head, ()
  if one and head.objective != 'multi_label':
    raise UserError(
      f'config.json: its label is {labels[0]!r} alone; a classifier needs two labels or more'
    )
  return head, labels


def _labels(config_json: Mapping[str, Any]) -> tuple[str, ...]:
  """Names of one label or more, in their order."""
  names = mapping.value_of(config_json, 'id2label', dict, None)
  if not names:
    count = mapping.value_of(config_json, 'num_labels', int, 2)
    if count < 1:
      raise UserError(f'config.json: num_labels={count} is not a number of labels')
    return tuple(f'LABEL_{i}' for i in range(count))
  wrong = f'config.json: id2label={names!r}'
  if set(names) != {str(i) for i in range(len(names))}:
    raise UserError(f'{wrong} does not number the labels from 0 on')
  labels = tuple(names[str(i)] for i in range(len(names)))
  if not all(isinstance(label, str) for label in labels):
    raise UserError(f'{wrong}: a label is a text')
  if len(set(labels)) < len(labels):
    raise UserError(f'{wrong} gives two labels one name')
  return labels


def open_folder(folder: epath.PathLike) -> tuple[Public, Tensors]:
  """A folder's description and its tensors, whose headers were read.

  Raises:
    UserError: for a folder that lacks either, is damaged or not supported.
  """
  folder = epath.Path(folder).expanduser()
  tensors = Tensors(folder)
  return describe(read_json(folder / CONFIG), tensors.shapes), tensors


def load(public: Public, source: engine.Source, leaves: Mapping[str, Any]) -> engine.Loaded:
  """`engine.load` with the names of whichever release wrote the source."""
  named = Canonical(source, public.family)
  return engine.load(public.entries, named, leaves, public.head.trunk_only)


def for_export(
  model: TransformerConfig,
  objective: str,
  options: Mapping[str, Any],
  labels: tuple[str, ...],
  architecture: str = '',
) -> Public:
  """The public class that holds a model.

  Args:
    model: the trunk's config.
    objective: its name.
    options: the objective's fields.
    labels: of the task.
    architecture: which class; otherwise the first that fits.

  Raises:
    UserError: if none does, with the reason of the class that was asked for or came nearest.
  """
  reasons = []
  all_names = []
  for family in mapping.families().values():
    for name, head in family.architectures.items():
      all_names.append(name)
      if name != architecture and (architecture or head.trunk_only):
        continue
      if not head.trunk_only and not mapping.serves(head, objective):
        if architecture:
          raise UserError(
            f'--architecture: a {name} does not have the head of the objective {objective!r}'
          )
        continue
      try:
        config_json = mapping.to_theirs(family, model)
        theirs = {}
        if not head.trunk_only:
          head, theirs = mapping.with_head(head, objective, options)
      except UserError as error:
        reasons.append(f'{name}: {error}')
        continue
      config_json |= {**theirs, 'architectures': [name]}
      # Their number is that of outputs, of which a regression has one.
      names = ('LABEL_0',) if head.objective == 'regression' else labels
      if names:
        config_json['id2label'] = {str(i): label for i, label in enumerate(names)}
        config_json['label2id'] = {label: i for i, label in enumerate(names)}
      # A class that is a trunk and no more has no prefix.
      prefix = '' if head.trunk_only else mapping.prefix_of(family, head)
      return Public(family, name, head, model, config_json, prefix, labels)
  if architecture and architecture not in all_names:
    raise UserError(
      f'--architecture: {architecture!r} is not known{nearest(architecture, all_names)}'
    )
  if not reasons:
    raise UserError(f'no public architecture has the head of the objective {objective!r}')
  raise UserError(f'no public architecture holds this model; {"; ".join(reasons)}')


def save(
  public: Public,
  leaves: Mapping[str, np.ndarray],
  source: Mapping[str, tuple[str, list[int]]],
  kept: Mapping[str, np.ndarray],
  dtype: str,
) -> dict[str, np.ndarray]:
  """`engine.save` under the names, and in the order, of the source that was imported, if any."""
  names = {public.family.table_name(name): name for name in source}
  known = {public.family.table_name(name): tuple(value) for name, value in source.items()}
  if public.head.trunk_only:
    paths = {path for entry in public.entries if isinstance(entry, Rule) for path in entry.paths}
    leaves = {path: leaf for path, leaf in leaves.items() if path in paths}
  tensors = engine.save(public.entries, leaves, known, kept, dtype)
  return {names.get(name, name): tensor for name, tensor in tensors.items()}
