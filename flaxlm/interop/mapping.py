"""config.json <-> the model's config, by a family's declaration.

A family is a file of `interop/families`, named as its `model_type`, with

  ARCHITECTURES   name in config.json -> Head: which objective of flaxlm it is
  PREFIX          before the names of a trunk that stands in a model with a head
  MODEL           the trunk: a file of flaxlm/models
  FIXED           model fields that are the same in all of the family
  FIELDS          the others, as `Field`
  REQUIRED        config.json field -> the only values supported, the first being the default
  UNSAID          model fields that change no result and that its files do not hold (optional)
  COUNTS_PADDING  whether padding before a text has positions of its own (optional; it has)
  REFUSED         public classes that compute something else -> what that is (optional)
  special(config_json), unspecial(model)  what is not one field for one (optional)
  table(model, head, prefix)  the entries (`interop/rules.py`)
"""

import dataclasses
import importlib
import pkgutil
import types
from collections.abc import Mapping, Sequence
from typing import Any

from flaxlm.config import tree
from flaxlm.config.field import Rules, met
from flaxlm.config.transformer import TransformerConfig
from flaxlm.errors import UserError, nearest

PACKAGE = 'flaxlm.interop.families'
# Fields that do not say what a model computes: how it is trained, initialised or run. `vocab_size`
# and `precision` come from elsewhere.
FREE = (
  *('dropout_rate', 'mlp_dropout_rate', 'embedding_dropout_rate', 'attention_dropout_rate'),
  'layer_drop_rate',
  *('init', 'init_std', 'remat', 'scan_layers', 'attention_kernel'),
  *('vocab_size', 'precision'),
)
# Objectives that train one head, and read a text in one way: the class of one holds them all.
_ALIKE = (
  frozenset({'causal_lm', 'completion'}),
  frozenset({'span_corruption', 'seq2seq'}),
  frozenset({'denoising', 'seq2seq'}),
  frozenset({'classification', 'regression', 'multi_label'}),
)
# Objectives whose head reads a text at one place, or as the mean of its tokens.
POOLED = ('classification', 'regression', 'multi_label', 'multiple_choice')
_NONE = object()


@dataclasses.dataclass(frozen=True)
class Field:
  """One field of config.json and what it is here.

  default: where config.json lacks it; without one that is an error. values: theirs -> ours, else
  the value itself; of several that mean the same, the first is written. also: further model fields
  that take the same value.
  """

  theirs: str
  ours: str
  default: Any = _NONE
  values: Mapping[Any, Any] | None = None
  also: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Head:
  """What a public class is in flaxlm: an objective, its options, and whether it is only a trunk.

  options: of which an export must have those that its objective knows. reads: further ones that an
  import sets; of an export the tokenizer's files tell them. also: those that an export must have
  whose objective is another one with this head. fields: options that fields of config.json tell.
  prefix: before the names of the trunk's tensors, where it is not the family's PREFIX.
  """

  objective: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reads: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  also: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  trunk_only: bool = False
  fields: tuple[Field, ...] = ()
  prefix: str | None = None

  @property
  def is_pooled(self) -> bool:
    """Whether it gives numbers of a text, and not of each token."""
    return self.objective in POOLED


# A sequence classifier's objective. One that says none and has one label learns a number.
PROBLEM = Field(
  'problem_type',
  'objective',
  None,
  {
    'single_label_classification': 'classification',
    None: 'classification',
    'regression': 'regression',
    'multi_label_classification': 'multi_label',
  },
)
# How public classifiers of each kind read a text.
ENCODER_CLASSES = {'pooling': 'first', 'pooler': 'tanh'}
DECODER_CLASSES = {'pooling': 'last', 'pooler': 'none'}
# Why public decoders that find spans are none of span_qa.
DECODER_SPANS = (
  'it reads question and text with nothing behind them; here, what stands behind the text stands '
  'for no answer'
)
# A linear map of each token, and nothing before it.
EACH_TOKEN = {'pooler': 'none'}


GELU = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh'}
ACTIVATIONS = {**GELU, 'relu': 'relu', 'silu': 'silu', 'swish': 'silu'}


def families() -> dict[str, types.ModuleType]:
  """model_type -> the family's module."""
  names = sorted(m.name for m in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__))
  return {name: importlib.import_module(f'{PACKAGE}.{name}') for name in names}


def family_of(config_json: Mapping[str, Any]) -> types.ModuleType:
  """The family of a config.json; UserError names an unsupported `model_type`."""
  known = families()
  name = config_json.get('model_type')
  if not isinstance(name, str) or name not in known:
    raise UserError(f'config.json: model_type={name!r} is not supported{nearest(str(name), known)}')
  return known[name]


def head_of(family: types.ModuleType, config_json: Mapping[str, Any]) -> tuple[str, Head]:
  """(architecture, Head) of a config.json; UserError names what is not supported."""
  names = value_of(config_json, 'architectures', list, None)
  found = names[0] if names else None
  if not isinstance(found, str) or found not in family.ARCHITECTURES:
    if isinstance(found, str) and found in getattr(family, 'REFUSED', {}):
      raise UserError(f'config.json: {found} is not supported: {family.REFUSED[found]}')
    near = nearest(str(found), family.ARCHITECTURES)
    raise UserError(f'config.json: architectures={found!r} is not supported{near}')
  head = family.ARCHITECTURES[found]
  options = {**head.options, **_read(head.fields, config_json, {})}
  if head.objective == 'classification':
    head = dataclasses.replace(head, **_read((PROBLEM,), config_json, {}))
  return found, dataclasses.replace(head, options=options)


def serves(head: Head, objective: str) -> bool:
  """Whether a class with this head holds what the objective trains."""
  return head.objective == objective or any({head.objective, objective} <= s for s in _ALIKE)


def prefix_of(family: types.ModuleType, head: Head) -> str:
  """What stands before the names of the trunk's tensors in a model with this head."""
  return family.PREFIX if head.prefix is None else head.prefix


def with_head(
  head: Head, objective: str, options: Mapping[str, Any]
) -> tuple[Head, dict[str, Any]]:
  """(the head with an objective and its options, fields of config.json that tell them).

  Raises:
    UserError: names the option with which the class would compute something else.
  """
  for name, value in {**head.options, **head.also}.items():
    if name in options and options[name] != value:
      raise UserError(f'config.objective.{name} is {options[name]!r}, and it has {value!r}')
  theirs = {field.theirs: _written(field, options.get(field.ours)) for field in head.fields}
  for field in head.fields:
    if theirs[field.theirs] is _NONE:
      raise UserError(f'config.objective.{field.ours} cannot be {options.get(field.ours)!r}')
  own = {field.ours: options.get(field.ours) for field in head.fields}
  head = dataclasses.replace(head, options={**head.options, **own})
  if head.objective == 'classification':
    head = dataclasses.replace(head, objective=objective)
    theirs[PROBLEM.theirs] = _written(PROBLEM, objective)
  return head, theirs


def _written(field: Field, value: Any) -> Any:
  """A value of ours as config.json has it; _NONE if it cannot."""
  if field.values is None:
    return value
  return next((theirs for theirs, ours in field.values.items() if ours == value), _NONE)


def value_of(config_json: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
  """A field of config.json, or of an object in it, whose type is `kind`; `default` if it has none.

  Raises UserError for a value of another type; null is one, unless `default` is None.
  """
  value = config_json.get(name, default)
  if value is None and default is None:
    return None
  nested = {dict: 'an object', list: 'a list'}
  if kind not in nested:
    return _checked(name, value, tree.Kind(kind, False, False), Rules(''))
  if not isinstance(value, kind):
    expected = nested[kind]
    raise UserError(f'config.json: {name}: expected {expected}, got {value!r}')
  return value


def _checked(name: str, value: Any, kind: tree.Kind, rules: Rules) -> Any:
  """`tree.checked` of a field of config.json."""
  try:
    return tree.checked(name, value, kind, rules)
  except UserError as error:
    raise UserError(f'config.json: {str(error).removeprefix("config.")}') from None


def _read(
  fields: Sequence[Field], config_json: Mapping[str, Any], known: Mapping[str, tuple]
) -> dict[str, Any]:
  """What fields of config.json are here; UserError names one that is missing or not supported.

  known: the fields of a config node here, as `tree.fields`, whose types and ranges are asked for.
  """
  ours = {}
  for field in fields:
    value = config_json.get(field.theirs, field.default)
    if value is _NONE:
      raise UserError(f'config.json: it has no {field.theirs}')
    if field.values is not None:
      if value not in tuple(field.values):  # Which asks for no hash of a list.
        shown = ', '.join(map(repr, field.values))
        raise UserError(
          f'config.json: {field.theirs}={value!r} is not supported; those that are: {shown}'
        )
      value = field.values[value]
    elif field.ours in known:
      kind, rules, _ = known[field.ours]
      value = _checked(field.theirs, value, kind, rules)
    for name in (field.ours, *field.also):
      ours[name] = value
  return ours


def to_ours(family: types.ModuleType, config_json: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of the trunk's config.

  Raises:
    UserError: names the field of config.json, and its value, that is not supported.
  """
  for key, allowed in family.REQUIRED.items():
    value = config_json.get(key, allowed[0])
    if value not in allowed:
      shown = ' or '.join(map(repr, allowed))
      raise UserError(f'config.json: {key}={value!r} is not supported, only {shown}')
  known = tree.fields(tree.node_class('model', family.MODEL))
  ours = {**family.FIXED, **_read(family.FIELDS, config_json, known)}
  if hasattr(family, 'special'):
    ours |= family.special(config_json)
  return ours


def to_theirs(family: types.ModuleType, model: TransformerConfig) -> dict[str, Any]:
  """Fields of config.json.

  Raises:
    UserError: names the field of the model's config that this family cannot express.
  """
  if model.name != family.MODEL:
    raise UserError(_cannot(family, 'name', model.name))
  theirs = {'model_type': family.__name__.rpartition('.')[2], 'vocab_size': model.vocab_size}
  theirs |= {key: allowed[0] for key, allowed in family.REQUIRED.items()}
  for field in family.FIELDS:
    value = _written(field, resolved(model, field.ours))
    if value is _NONE:
      raise UserError(_cannot(family, field.ours, getattr(model, field.ours)))
    theirs[field.theirs] = value
  if hasattr(family, 'unspecial'):
    theirs |= family.unspecial(model)
  back = model_config(family, theirs, model.vocab_size)
  for item in dataclasses.fields(TransformerConfig):
    if item.name in (*FREE, *getattr(family, 'UNSAID', ())) or not _is_read(item.name, model):
      continue
    if resolved(back, item.name) != resolved(model, item.name):
      raise UserError(_cannot(family, item.name, getattr(model, item.name)))
  return theirs


def _cannot(family: types.ModuleType, name: str, value: Any) -> str:
  kind = family.__name__.rpartition('.')[2]
  return f'config.model.{name}: the files of {kind} cannot express {value!r}'


def _is_read(name: str, model: TransformerConfig) -> bool:
  """Whether the field has a meaning under the other fields of the model."""
  _, rules, _ = tree.fields(type(model))[name]
  conditions = {k: v for k, v in (rules.when or {}).items() if not k.startswith('config.')}
  return all(met(getattr(model, key), allowed) for key, allowed in conditions.items())


def resolved(model: TransformerConfig, name: str) -> Any:
  """A field, with what stands for an unset one."""
  properties = {
    'num_kv_heads': model.kv_heads,
    'head_dim': model.head_size,
    'mlp_dim': model.mlp_size,
    'mlp_dropout_rate': model.mlp_dropout,
    'num_decoder_layers': model.decoder_layers,
    'attention_bias': model.attention_biases,
    'mlp_bias': model.mlp_biases,
  }
  return properties.get(name, getattr(model, name))


def model_config(
  family: types.ModuleType, config_json: Mapping[str, Any], vocab_size: int
) -> TransformerConfig:
  """The trunk's config of a config.json."""
  values = to_ours(family, config_json)
  node = tree.node_dict(tree.node_class('model', family.MODEL)).to_dict()
  node |= values | {'name': family.MODEL, 'vocab_size': vocab_size}
  cls = tree.node_class('model', family.MODEL)
  try:
    return tree.build_node(cls, node, 'model.')
  except UserError as error:
    raise UserError(f'config.json: {error}') from error
