"""`--config.a.b=value`: typed, in two passes, and never silently without effect.

Keys are dotted and have no leading 'config.'; messages show them with it.
"""

import ast
import difflib
from collections.abc import Sequence
from typing import Any

from ml_collections import config_dict as cd

from flaxlm.config import schema, tree
from flaxlm.config.field import SET, Rules, met
from flaxlm.errors import UserError, nearest

ABSENT = '(absent)'
TRUTH = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}


def apply(config_dict: cd.ConfigDict, overrides: Sequence[tuple[str, str]]) -> None:
  """Sets the fields of a ConfigDict made by `tree.new`, from (dotted key, text) pairs, in place.

  Names of models, objectives and tasks come first, in whatever order they stand: each rebuilds its
  node, with fresh defaults unless the new name has the same dataclass. Then the rest. Raises
  UserError for a key that does not exist, a value of the wrong type or out of range, and a field
  that the resolved config never reads. Of total_steps and num_epochs, which exclude each other, one
  that is set here unsets the other.
  """
  renaming = [pair for pair in overrides if _names_module(pair[0])]
  for key, text in renaming:
    _rename(config_dict, key.partition('.')[0], text)
  for key, text in overrides:
    if (key, text) in renaming:
      continue
    kind, rules = _find(config_dict, key)
    if rules.derived:
      raise UserError(f'config.{key}: cannot be set: it comes {rules.doc}')
    value = tree.checked(key, parse(key, text, kind), kind, rules)
    parent, _, leaf = key.rpartition('.')
    (config_dict[parent] if parent else config_dict)[leaf] = value
  _choose_length(config_dict, {key for key, _ in overrides})
  for key, _ in overrides:
    reason = unread(config_dict, key)
    if reason:
      raise UserError(f'config.{key}: would do nothing: {reason}')


def _choose_length(config_dict: cd.ConfigDict, keys: set[str]) -> None:
  """Unsets the recipe's length of the run where the user has set the alternative."""
  for mine, other in (('total_steps', 'num_epochs'), ('num_epochs', 'total_steps')):
    if mine in keys and other not in keys and config_dict[mine] is not None:
      config_dict[other] = None


def _names_module(key: str) -> bool:
  node, _, leaf = key.partition('.')
  return node in tree.PACKAGES and leaf == 'name'


def _rename(config_dict: cd.ConfigDict, node: str, name: str) -> None:
  """Rebuilds a node from the file of that name.

  Values are kept where the new file's dataclass is the old one or extends it; otherwise all are
  defaults.
  """
  before = config_dict[node]
  rebuilt = tree.named_dict(node, name)
  if issubclass(tree.node_class(node, name), tree.node_class(node, before.name)):
    rebuilt.update({key: value for key, value in before.items() if key != 'name'})
  with config_dict.unlocked():
    config_dict[node] = rebuilt
  config_dict.lock()


def classes(config_dict: cd.ConfigDict) -> dict[str, type]:
  """Dotted key of each node ('' is the root) -> its dataclass."""
  found = {'': schema.Config}
  for name, (kind, _, default) in tree.fields(schema.Config).items():
    if name in tree.PACKAGES:
      found[name] = tree.node_class(name, config_dict[name].name)
    elif not isinstance(kind, tree.Kind):
      found[name] = type(default)
  return found


def _find(config_dict: cd.ConfigDict, key: str) -> tuple[tree.Kind, Rules]:
  """Kind and rules of the field under a dotted key; UserError with the nearest key if absent."""
  nodes = classes(config_dict)
  if key in nodes:
    example = next(iter(tree.fields(nodes[key])))
    raise UserError(
      f'config.{key}: has fields of its own: set one of them, as config.{key}.{example}'
    )
  parent, _, leaf = key.rpartition('.')
  known = tree.fields(nodes[parent]) if parent in nodes else {}
  if leaf not in known or key.startswith('.'):
    raise UserError(f'config.{key}: there is no such field{_nearest_key(nodes, key)}')
  kind, rules, _ = known[leaf]
  return kind, rules


def _nearest_key(nodes: dict[str, type], key: str) -> str:
  """Hint for an unknown key: a near name in its node, the same name elsewhere, or a near key."""
  keys = [
    f'config.{node}.{name}' if node else f'config.{name}'
    for node, cls in nodes.items()
    for name, (kind, rules, _) in tree.fields(cls).items()
    if isinstance(kind, tree.Kind) and not rules.derived
  ]
  parent, _, leaf = key.rpartition('.')
  siblings = {
    name: f'config.{parent}.{name}' if parent else f'config.{name}'
    for name in (tree.fields(nodes[parent]) if parent in nodes else ())
  }
  close = [name for name in siblings if leaf == ''.join(word[0] for word in name.split('_'))]
  close = close or difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.7)
  if close:
    return nearest(siblings[close[0]], [siblings[close[0]]])
  same = [k for k in keys if k.rpartition('.')[2] == leaf]
  return nearest(f'config.{key}', same or keys) or nearest(same[0], same)


def parse(key: str, text: str, kind: tree.Kind) -> Any:
  """The value that a text from the command line stands for; UserError if it is of another type.

  'none' unsets a field that may be unset. Tuples are written `1,2`, or as a Python tuple or list
  where an element holds a comma; an empty text is the empty tuple.
  """
  if kind.optional and text.strip().lower() in ('none', ''):
    return None
  if kind.is_tuple:
    return tuple(_scalar(key, item, kind) for item in _elements(text))
  return _scalar(key, text, kind)


def _elements(text: str) -> list[Any]:
  """Elements of a tuple's text, as texts, or as they are where they were written as a literal."""
  stripped = text.strip()
  if stripped[:1] in ('(', '['):
    try:
      literal = ast.literal_eval(stripped)
    except (ValueError, SyntaxError):
      literal = None  # A regular expression may start with a bracket too.
    if isinstance(literal, tuple | list):
      return [item if isinstance(item, str) else repr(item) for item in literal]
  return [item.strip() for item in stripped.split(',') if item.strip()]


def _scalar(key: str, text: str, kind: tree.Kind) -> Any:
  if kind.item is str:
    return text
  if kind.item is bool:
    if text.strip().lower() in TRUTH:
      return TRUTH[text.strip().lower()]
    raise UserError(f'config.{key}: expected {kind.describe()}, got {text!r}')
  try:
    return kind.item(text)
  except ValueError:
    hint = ''
    if kind.item is int:
      try:
        hint = f' (did you mean {round(float(text))}?)'
      except (ValueError, OverflowError):
        hint = ''
    raise UserError(f'config.{key}: expected {kind.describe()}, got {text!r}{hint}') from None


def unread(config_dict: cd.ConfigDict, key: str) -> str:
  """Why nothing reads the field under this key in this config; '' if it is read."""
  parent, _, leaf = key.rpartition('.')
  node = config_dict[parent] if parent else config_dict
  _, rules, _ = tree.fields(classes(config_dict)[parent])[leaf]
  for other, values in (rules.when or {}).items():
    name = f'config.{parent}.{other}' if parent else f'config.{other}'
    owner, field = node, other
    if other.startswith('config.'):
      name, owner = other, config_dict
      *path, field = other.split('.')[1:]
      for part in path:
        owner = owner[part]
    if field == 'name' and '.' in owner[field]:
      continue  # the user's own file may read anything
    if not met(owner[field], values):
      wanted = ' or '.join('a value' if value == SET else str(value) or "''" for value in values)
      return f'it is read only with {name}={wanted}, which is {owner[field]!r}'
  return ''


def differing_fields(a: schema.Config, b: schema.Config) -> list[tuple[str, Any, Any]]:
  """(dotted key, value in a, value in b) of every field that differs.

  A field that one of them lacks, because a node has another dataclass, is '(absent)' there. Derived
  fields follow from others and are not compared.
  """
  first, second = tree.flatten(a), tree.flatten(b)
  derived = {
    f'{node}.{name}'
    for config in (a, b)
    for node in tree.PACKAGES
    for name, (_, rules, _) in tree.fields(type(getattr(config, node))).items()
    if rules.derived
  }
  keys = [key for key in {**first, **second} if key not in derived]
  pairs = [(key, first.get(key, ABSENT), second.get(key, ABSENT)) for key in keys]
  return [(key, x, y) for key, x, y in pairs if x != y]
