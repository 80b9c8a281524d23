"""The experiment as a ConfigDict (recipes, overrides), as dataclasses (the program) and as JSON.

The dataclasses of this folder and of the named modules are the only source of fields, defaults and
rules; the three forms are translated into each other here, strictly.
"""

import dataclasses
import importlib
import math
import pkgutil
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import config_dict as cd

from flaxlm.config import schema
from flaxlm.config.field import FLAG, Named, Rules, rules_of
from flaxlm.errors import UserError, nearest, nearest_of_all

# Nodes that are rebuilt from the file they name, and the package in which it is looked for.
PACKAGES = {'model': 'flaxlm.models', 'objective': 'flaxlm.objectives', 'task': 'flaxlm.tasks'}


@dataclasses.dataclass(frozen=True)
class Kind:
  """Type of a field: `item` is int, float, bool or str; of the elements where `is_tuple`."""

  item: type
  is_tuple: bool
  optional: bool

  def describe(self) -> str:
    words = {int: 'whole number', float: 'number', bool: 'true or false', str: 'text'}
    text = {int: 'whole numbers', float: 'numbers', bool: 'true or false', str: 'texts'}
    name = f'{text[self.item]} with commas between' if self.is_tuple else words[self.item]
    return name + (' or none' if self.optional else '')


# ------------------------------------------------------------------------------------- modules


def load_module(package: str, name: str) -> types.ModuleType:
  """Imports the file `name` of `package` ('flaxlm.models'), or the user's module if dotted.

  Raises UserError that names the nearest file, and lists the files, if there is none.
  """
  if not all(part.isidentifier() for part in name.split('.')):
    raise UserError(_no_such_file(package, name))
  own = '.' in name
  dotted = name if own else f'{package}.{name}'
  try:
    module = importlib.import_module(dotted)
  except ImportError as error:
    missing = getattr(error, 'name', None) if isinstance(error, ModuleNotFoundError) else None
    if missing is None or not f'{dotted}.'.startswith(f'{missing}.'):
      raise UserError(f'{name!r} cannot be imported: {error}') from error
    if own:
      raise UserError(f'there is no module {name!r} on the Python path') from error
    raise UserError(_no_such_file(package, name)) from error
  if not hasattr(module, 'Config'):
    raise UserError(f'module {name!r} has no class Config' if own else _no_such_file(package, name))
  return module


def load_class(package: str, name: str, base: type) -> type:
  """The class of `load_module` that is named as `base` and derives from it.

  Raises UserError if there is none, or it lacks a method that it must have.
  """
  cls = getattr(load_module(package, name), base.__name__, None)
  wanted = f'{base.__module__}.{base.__name__}'
  if not (isinstance(cls, type) and issubclass(cls, base)):
    raise UserError(f'module {name!r} has no class {base.__name__} that derives from {wanted}')
  missing = sorted(cls.__abstractmethods__)
  if missing:
    raise UserError(f'module {name!r}: {base.__name__} has no method {missing[0]!r} of {wanted}')
  return cls


def _no_such_file(package: str, name: str) -> str:
  """Message for a name that no file of the package implements: the nearest, and all of them."""
  hint = nearest_of_all(name, named_files(package), 'the files')
  return f'{package.replace(".", "/")} has no {name!r}{hint}'


def named_files(package: str) -> list[str]:
  """Names of the files of a package that a config may name: those with a `Config`."""
  names = []
  for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
    module = importlib.import_module(f'{package}.{info.name}')
    if hasattr(module, 'Config') and getattr(module, '__name__', '').endswith(info.name):
      names.append(info.name)
  return sorted(names)


def node_class(node: str, name: str) -> type:
  """Dataclass of the node 'model', 'objective' or 'task' under a name; only a task may be ''."""
  if not name and node == 'task':
    return Named
  try:
    cls = load_module(PACKAGES[node], name).Config
  except UserError as error:
    raise UserError(f'config.{node}.name: {error}') from error
  if not (dataclasses.is_dataclass(cls) and issubclass(cls, Named)):
    raise UserError(
      f'config.{node}.name: Config of {name!r} must be a dataclass derived from Named'
    )
  return cls


# -------------------------------------------------------------------------------------- fields


def fields(cls: type) -> dict[str, tuple[Kind | type, Rules, Any]]:
  """Fields of a node class: name -> (Kind, or the class of a child node; rules; default)."""
  hints = typing.get_type_hints(cls)
  found = {}
  for item in dataclasses.fields(cls):
    if FLAG not in item.metadata:
      raise UserError(f'{cls.__module__}.{cls.__name__}.{item.name}: declare it with field(...)')
    if item.default_factory is not dataclasses.MISSING:
      default = item.default_factory()
    else:
      default = item.default
    hint = hints[item.name]
    kind = hint if dataclasses.is_dataclass(hint) else _kind(hint)
    found[item.name] = (kind, rules_of(item), default)
  return found


def _kind(hint: Any) -> Kind:
  """Kind of an annotation: int, float, bool, str, tuple[X, ...], or one of them with `| None`."""
  optional = False
  if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    optional = len(members) < len(typing.get_args(hint))
    (hint,) = members
  if typing.get_origin(hint) is tuple:
    return Kind(typing.get_args(hint)[0], True, optional)
  if hint not in (int, float, bool, str):
    raise TypeError(f'config fields are numbers, texts, truth values or tuples, not {hint}')
  return Kind(hint, False, optional)


def checked(key: str, value: Any, kind: Kind, rules: Rules) -> Any:
  """The value in its declared type; UserError that names `key` if type, range or choice is wrong.

  Whole numbers are taken where numbers are wanted and lists where tuples are; nothing else is
  converted.
  """
  if value is None:
    if kind.optional:
      return None
    raise UserError(f'config.{key}: expected {kind.describe()}, got none')
  if kind.is_tuple:
    if not isinstance(value, list | tuple):
      raise UserError(f'config.{key}: expected {kind.describe()}, got {value!r}')
    return tuple(checked(key, item, Kind(kind.item, False, False), rules) for item in value)
  if kind.item is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  right = isinstance(value, kind.item) and (kind.item is bool or not isinstance(value, bool))
  if not right or (kind.item is float and not math.isfinite(value)):
    raise UserError(f'config.{key}: expected {kind.describe()}, got {value!r}')
  if rules.choices is not None and value not in rules.choices:
    hint = nearest_of_all(value, rules.choices, 'the choices')
    raise UserError(f'config.{key}: {value!r} is not a choice{hint}')
  _check_range(key, value, rules)
  return value


def _check_range(key: str, value: Any, rules: Rules) -> None:
  """UserError with the nearest valid value if a bound of the rules is broken."""
  for bound, sign, broken in (
    (rules.low, '>=', lambda: value < rules.low),
    (rules.high, '<=', lambda: value > rules.high),
    (rules.above, '>', lambda: value <= rules.above),
    (rules.below, '<', lambda: value >= rules.below),
  ):
    if bound is not None and broken():
      bound = type(value)(bound)
      near = f'; the nearest valid value is {bound}' if '=' in sign else ''
      raise UserError(f'config.{key}: must be {sign} {bound}, got {value}{near}')


# ----------------------------------------------------------------------------- ConfigDict


def new(model: str = 'decoder', objective: str = 'causal_lm', task: str = '') -> cd.ConfigDict:
  """A locked ConfigDict with every default, for recipes to change.

  Unset (None) fields are typed placeholders, so that they can be set later; derived fields are
  left out, so that they cannot.
  """
  tree = node_dict(schema.Config)
  for node, name in (('model', model), ('objective', objective), ('task', task)):
    tree[node] = named_dict(node, name)
  return tree.lock()


def named_dict(node: str, name: str) -> cd.ConfigDict:
  """Fresh defaults of the node 'model', 'objective' or 'task' under the given name."""
  tree = node_dict(node_class(node, name))
  tree.name = name
  return tree


def node_dict(cls: type) -> cd.ConfigDict:
  """Defaults of a node class as an unlocked ConfigDict."""
  tree = cd.ConfigDict()
  for name, (kind, rules, default) in fields(cls).items():
    if rules.derived:
      continue
    if not isinstance(kind, Kind):
      tree[name] = node_dict(type(default))
    elif default is None:
      tree[name] = cd.placeholder(tuple if kind.is_tuple else kind.item)
    else:
      tree[name] = default
  return tree


def from_config_dict(config_dict: cd.ConfigDict) -> schema.Config:
  """The experiment as dataclasses; UserError that names the key for anything that is not valid."""
  return from_dict(config_dict.to_dict())


def to_config_dict(config: schema.Config) -> cd.ConfigDict:
  """The experiment as a locked ConfigDict, for overrides; derived fields are dropped."""
  tree = new(config.model.name, config.objective.name, config.task.name)
  for key, value in flatten(config).items():
    parent, _, leaf = key.rpartition('.')
    node = tree[parent] if parent else tree
    if leaf in node:
      node[leaf] = value
  return tree


# ------------------------------------------------------------------------------------- JSON


def to_dict(config: Any) -> dict[str, Any]:
  """A node as nested dicts of JSON values (tuples become lists), derived fields included."""
  tree = {}
  for item in dataclasses.fields(config):
    value = getattr(config, item.name)
    if dataclasses.is_dataclass(value):
      value = to_dict(value)
    tree[item.name] = list(value) if isinstance(value, tuple) else value
  return tree


def from_dict(tree: Mapping[str, Any]) -> schema.Config:
  """Inverse of `to_dict`; UserError that names an unknown key, wrong type or value.

  A field that is absent has its default, so that a run of an older version can be opened.
  """
  return build_node(schema.Config, tree, '')


def build_node(cls: type, tree: Any, path: str) -> Any:
  """One node and what is below it. `path` is '' or the dotted key of the node, with a dot."""
  if not isinstance(tree, Mapping):
    raise UserError(f'config.{path[:-1]}: expected a node with fields, got {tree!r}')
  known = fields(cls)
  for key in tree:
    if key not in known:
      raise UserError(f'config.{path}{key}: there is no such field{nearest(key, known)}')
  values = {}
  for name, (kind, rules, default) in known.items():
    if not isinstance(kind, Kind):
      child = tree.get(name, {})
      child_class = type(default)
      if not path and name in PACKAGES and isinstance(child, Mapping):
        chosen = checked(f'{name}.name', child.get('name', ''), Kind(str, False, False), Rules(''))
        child_class = node_class(name, chosen)
      values[name] = build_node(child_class, child, f'{path}{name}.')
    elif name in tree:
      # A derived field at its default stands for `not yet known` and may lie outside its range.
      exempt = rules.derived and tree[name] == default
      values[name] = default if exempt else checked(path + name, tree[name], kind, rules)
    else:
      values[name] = default
  node = cls(**values)
  if hasattr(node, 'check'):
    try:
      node.check()
    except UserError as error:
      prefix = f'config.{path}' if path else ''
      raise UserError(f'{prefix}{error}') from error
  return node


# -------------------------------------------------------------------------------------- walks


def flatten(config: Any, path: str = '') -> dict[str, Any]:
  """Dotted key -> value of every leaf of a node of dataclasses; keys have no leading 'config.'."""
  return dict(_leaves(config, path))


def _leaves(config: Any, path: str) -> Iterator[tuple[str, Any]]:
  for item in dataclasses.fields(config):
    value = getattr(config, item.name)
    if dataclasses.is_dataclass(value):
      yield from _leaves(value, f'{path}{item.name}.')
    else:
      yield path + item.name, value
