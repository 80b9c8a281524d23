"""config.json <-> the model's config, by what a `Family` declares."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from flaxlm.config import tree
from flaxlm.config.field import Rules, met
from flaxlm.config.transformer import TransformerConfig
from flaxlm.errors import UserError, nearest
from flaxlm.interop.family import NO_VALUE, Family, Field, Head

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


def families() -> dict[str, Family]:
  """model_type -> the family that the file of this name declares."""
  names = sorted(m.name for m in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__))
  return {name: importlib.import_module(f'{PACKAGE}.{name}').FAMILY for name in names}


def find_family(config_json: Mapping[str, Any]) -> Family:
  """The family of a config.json; UserError names an unsupported `model_type`."""
  known = families()
  name = config_json.get('model_type')
  if not isinstance(name, str) or name not in known:
    raise UserError(f'config.json: model_type={name!r} is not supported{nearest(str(name), known)}')
  return known[name]


def head_of(family: Family, config_json: Mapping[str, Any]) -> tuple[str, Head]:
  """(architecture, Head) of a config.json; UserError names what is not supported."""
  names = value_of(config_json, 'architectures', list, None)
  found = names[0] if names else None
  if not isinstance(found, str) or found not in family.architectures:
    if isinstance(found, str) and found in family.refused:
      raise UserError(f'config.json: {found} is not supported: {family.refused[found]}')
    near = nearest(str(found), family.architectures)
    raise UserError(f'config.json: architectures={found!r} is not supported{near}')
  head = family.architectures[found]
  options = {**head.options, **_read(head.fields, config_json, {})}
  if head.objective == 'classification':
    head = dataclasses.replace(head, **_read((PROBLEM,), config_json, {}))
  return found, dataclasses.replace(head, options=options)


def serves(head: Head, objective: str) -> bool:
  """Whether a class with this head holds what the objective trains."""
  return head.objective == objective or any({head.objective, objective} <= s for s in _ALIKE)


def prefix_of(family: Family, head: Head) -> str:
  """What stands before the names of the trunk's tensors in a model with this head."""
  return family.prefix if head.prefix is None else head.prefix


def with_head(
  head: Head, objective: str, options: Mapping[str, Any]
) -> tuple[Head, dict[str, Any]]:
  """(the head with an objective and its options, fields of config.json that tell them).

  Raises:
    UserError: names the option with which the class would compute something else.
  """
  for name, value in {**head.options, **head.also}.items():
    if name in options and options[name] != value:
      raise UserError(f'config.objective.{name} is {options[name]!r}, and the class has {value!r}')
  theirs = {field.theirs: _written(field, options.get(field.ours)) for field in head.fields}
  for field in head.fields:
    if theirs[field.theirs] is NO_VALUE:
      raise UserError(f'config.objective.{field.ours} cannot be {options.get(field.ours)!r}')
  own = {field.ours: options.get(field.ours) for field in head.fields}
  head = dataclasses.replace(head, options={**head.options, **own})
  if head.objective == 'classification':
    head = dataclasses.replace(head, objective=objective)
    theirs[PROBLEM.theirs] = _written(PROBLEM, objective)
  return head, theirs


def _written(field: Field, value: Any) -> Any:
  """A value of ours as config.json has it; NO_VALUE if it cannot."""
  if field.values is None:
    return value
  return next((theirs for theirs, ours in field.values.items() if ours == value), NO_VALUE)


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
    if value is NO_VALUE:
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


def to_ours(family: Family, config_json: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of the trunk's config.

  Raises:
    UserError: names the field of config.json, and its value, that is not supported.
  """
  for key, allowed in family.required.items():
    value = config_json.get(key, allowed[0])
    if value not in allowed:
      shown = ' or '.join(map(repr, allowed))
      raise UserError(f'config.json: {key}={value!r} is not supported, only {shown}')
  known = tree.fields(tree.node_class('model', family.model))
  read = _read(family.fields, config_json, known)
  return {**family.fixed, **read, **family.extra_ours(config_json)}


def to_theirs(family: Family, model: TransformerConfig) -> dict[str, Any]:
  """Fields of config.json.

  Raises:
    UserError: names the field of the model's config that this family cannot express.
  """
  if model.name != family.model:
    raise UserError(_cannot(family, 'name', model.name))
  theirs = {'model_type': family.name, 'vocab_size': model.vocab_size}
  theirs |= {key: allowed[0] for key, allowed in family.required.items()}
  for field in family.fields:
    value = _written(field, resolved(model, field.ours))
    if value is NO_VALUE:
      raise UserError(_cannot(family, field.ours, getattr(model, field.ours)))
    theirs[field.theirs] = value
  theirs |= family.extra_theirs(model)
  back = model_config(family, theirs, model.vocab_size)
  for item in dataclasses.fields(TransformerConfig):
    if item.name in (*FREE, *family.unsaid) or not _is_read(item.name, model):
      continue
    if resolved(back, item.name) != resolved(model, item.name):
      raise UserError(_cannot(family, item.name, getattr(model, item.name)))
  return theirs


def _cannot(family: Family, name: str, value: Any) -> str:
  return f'config.model.{name}: the files of {family.name} cannot express {value!r}'


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
  family: Family, config_json: Mapping[str, Any], vocab_size: int
) -> TransformerConfig:
  """The trunk's config of a config.json."""
  values = to_ours(family, config_json)
  cls = tree.node_class('model', family.model)
  node = tree.node_dict(cls).to_dict()
  node |= values | {'name': family.model, 'vocab_size': vocab_size}
  try:
    return tree.build_node(cls, node, 'model.')
  except UserError as error:
    raise UserError(f'config.json: {error}') from error
