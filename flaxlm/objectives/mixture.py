"""Several objectives in one run: each row is made by one of them, drawn by weight.

The members share everything but how they corrupt a text: batch keys, head and loss (as the
denoisers of UL2 do, Tay et al. 2022, section 3.1). A row holds as much text as fits under every
member, so that the rows of an epoch are the same whatever is drawn. The loss is the mean over all
targets of the batch; metrics are also reported by member, as MEMBER/loss.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.config import overrides, tree
from flaxlm.config.field import Named, field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.config.transformer import TransformerConfig
from flaxlm.data.packing import Piece, Stream
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError, nearest
from flaxlm.models import family
from flaxlm.objectives import base
from flaxlm.types import Array, Batch, Mean

KEY = 'config.objective.members'
# The batch key that says which member made a row.
MEMBER = 'member'


@dataclasses.dataclass(frozen=True)
class Config(Named):
  """A mixture of objectives."""

  members: tuple[str, ...] = field(
    (), 'OBJECTIVE or LABEL=OBJECTIVE each; labels tell members of the same objective apart'
  )
  weights: tuple[float, ...] = field(
    (), 'how often a row is of each member, relative to the others; all alike if unset', above=0.0
  )
  settings: tuple[str, ...] = field((), 'LABEL.FIELD=VALUE: fields of the members')

  def check(self) -> None:
    if self.weights and len(self.weights) != len(self.members):
      raise UserError(
        f'weights: {len(self.weights)} weights for {len(self.members)} members; give one each'
      )


class Objective(base.Objective):
  """Terms, head and loss are those that the members have in common."""

  families = ('encoder', 'decoder', 'encoder_decoder')
  packing = 'concatenate'

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    configs = member_configs(config.objective)
    if len(configs) < 2:
      raise UserError(f'{KEY}: name at least two, as in r=span_corruption,x=span_corruption')
    self.labels = tuple(configs)
    self.members = []
    for label, member in configs.items():
      cls = tree.load_class('flaxlm.objectives', member.name, base.Objective)
      _check_kind(label, cls, config)
      self.members.append(cls(dataclasses.replace(config, objective=member), tokenizer))
    first = self.members[0]
    for label, member in zip(self.labels[1:], self.members[1:], strict=True):
      _check_alike(self.labels[0], first, label, member, config.model)
    weights = np.array(config.objective.weights or [1.0] * len(self.members))
    self._bounds = np.cumsum(weights / weights.sum())[:-1]
    self.terms, self.perplexity, self.recurrent = first.terms, first.perplexity, first.recurrent
    self.prompt, self.predicts_masks = first.prompt, first.predicts_masks
    self.sentinels = any(member.sentinels for member in self.members)
    # Less text and more room for marks than a member needs: what fits all fits each.
    self.span = min(member.span for member in self.members)
    self.gap = max(member.gap for member in self.members)
    self.streams = {
      name: dataclasses.replace(
        stream, capacity=max(member.streams[name].capacity for member in self.members)
      )
      for name, stream in first.streams.items()
    } | {MEMBER: Stream(1, (MEMBER,))}

  def of_row(self, rng: np.random.Generator) -> '_Row':
    """What makes the features of a row: one of the members, drawn with the row's own `rng`."""
    number = int(np.searchsorted(self._bounds, rng.random(), side='right'))
    return _Row(self.members[number], number)

  def features(self, piece: Piece, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    """Of a piece that is a row of its own."""
    return self.of_row(rng).features(piece, rng)

  def head(self, model: TransformerConfig) -> nn.Module:
    return self.members[0].head(model)

  def weights(self, batch: Batch) -> dict[str, Array]:
    return self.members[0].weights(batch)

  def losses(self, outputs, batch: Batch) -> tuple[dict[str, Array], dict[str, Mean]]:
    """Summed loss of each term over all rows; metrics over all, and over the rows of each member.

    The metrics of a member cost another product with the vocabulary table, without a gradient.
    """
    totals, metrics = self.members[0].losses(outputs, batch)
    fixed = jax.lax.stop_gradient(outputs)
    for number, (label, member) in enumerate(zip(self.labels, self.members, strict=True)):
      mine = jnp.asarray(batch[MEMBER] == number, jnp.float32)
      weighed = {key: x * mine if key.endswith('weights') else x for key, x in batch.items()}
      _, found = member.losses(fixed, weighed)
      metrics = metrics | {f'{label}/{name}': mean for name, mean in found.items()}
    return totals, metrics


class _Row:
  """A member that makes the features of one row; those of its first item say which member."""

  def __init__(self, member: Any, number: int):
    self._member, self._mark = member, np.array([number], np.int32)

  def features(self, item: Any, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    features = self._member.features(item, rng)
    if features is None:
      return None
    mark, self._mark = self._mark, self._mark[:0]
    return features | {MEMBER: mark}


def member_configs(config: Config) -> dict[str, Named]:
  """Label -> config of each member; UserError that names the label or field that is wrong."""
  values: dict[str, dict[str, Any]] = {}
  for text in config.members:
    label, _, name = text.rpartition('=')
    label = label or name
    if label in values:
      raise UserError(
        f'{KEY}: two members are called {label!r}; tell them apart by LABEL=OBJECTIVE'
      )
    values[label] = {'name': name}
  classes = {label: _class(node['name']) for label, node in values.items()}
  for text in config.settings:
    left, equals, value = text.partition('=')
    label, dot, name = left.partition('.')
    if not (equals and dot):
      raise UserError(f'config.objective.settings: {text!r} is not LABEL.FIELD=VALUE')
    if label not in values:
      raise UserError(f'config.objective.settings: no member {label!r}{nearest(label, values)}')
    fields = tree.fields(classes[label])
    if name not in fields or name == 'name':
      hint = nearest(name, [known for known in fields if known != 'name'])
      raise UserError(f'config.objective.settings: {label!r} has no field {name!r}{hint}')
    kind, rules, _ = fields[name]
    key = f'objective.settings: {left}'
    values[label][name] = tree.checked(key, overrides.parse(key, value, kind), kind, rules)
  configs = {}
  for label, node in values.items():
    configs[label] = classes[label](**node)
    if hasattr(configs[label], 'check'):
      try:
        configs[label].check()
      except UserError as error:
        raise UserError(f'config.objective.settings: {label}.{error}') from error
  return configs


def _class(name: str) -> type:
  if name == 'mixture':
    raise UserError(f'{KEY}: a mixture cannot be a member of a mixture')
  try:
    return tree.load_module('flaxlm.objectives', name).Config
  except UserError as error:
    raise UserError(f'{KEY}: {error}') from error


def _check_kind(label: str, cls: type, config: ExperimentConfig) -> None:
  """UserError if a member does not learn from running text, or not with this trunk."""
  family.check(config.model.name, cls.families, f'{KEY}: {label!r}')
  if cls.packing != 'concatenate':
    raise UserError(f'{KEY}: {label!r} learns from labelled rows, a mixture from running text')


def _check_alike(label: str, a: Any, other: str, b: Any, model: TransformerConfig) -> None:
  """UserError that says in what two members differ, if they cannot share a batch, head and loss."""
  pair = f'{KEY}: {label!r} and {other!r} cannot be mixed: '
  keys, others = _keys(a.streams), _keys(b.streams)
  if keys != others:
    key = sorted(keys.items() ^ others.items())[0][0]
    where = [name for name, found in ((label, keys), (other, others)) if key in found]
    what = f'only {where[0]!r} has it' if len(where) == 1 else 'they lay it out differently'
    raise UserError(f'{pair}batch key {key!r}: {what}')
  if _description(a.head(model)) != _description(b.head(model)):
    raise UserError(f'{pair}their heads differ')
  alike = all(getattr(type(a), n) is getattr(type(b), n) for n in ('losses', 'weights'))
  if not alike or a.terms != b.terms:
    raise UserError(f'{pair}their losses differ')
  for name in ('label_smoothing', 'z_loss'):
    if getattr(a.config, name, None) != getattr(b.config, name, None):
      raise UserError(f'{pair}{name} is {getattr(a.config, name)} and {getattr(b.config, name)}')


def _keys(streams: Mapping[str, Stream]) -> dict[str, tuple]:
  """Batch key -> where it lies: stream, what is added to it, and the stream it points into."""
  return {
    key: (name, stream.prefix or '', stream.offset.get(key, ''))
    for name, stream in streams.items()
    for key in stream.keys
  }


def _description(head: nn.Module) -> tuple:
  """Class and fields of a module, by which two are the same."""
  fields = [f.name for f in dataclasses.fields(head) if f.name not in ('parent', 'name')]
  return type(head), [getattr(head, name) for name in fields]
