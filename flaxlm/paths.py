"""Paths of leaves: the one selector of parameters, in patterns, reports and messages."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from flaxlm.errors import UserError, nearest

# Leaves below a node of this name are stacked: axis 0 is the layer, from the one that is named.
STACK = re.compile(r'layers(?:_from_(\d+))?')


def leaf_paths(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
  """Path -> leaf, in tree order; the parts of a path are joined by '/'.

  is_leaf: what else is a leaf, such as a box with logical axes.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
  return {path_name(path): leaf for path, leaf in leaves}


def path_name(path: Sequence[Any]) -> str:
  """The path of a leaf from JAX's keys: their names, joined by '/'."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def stack_of(path: str) -> tuple[int, int] | None:
  """Of a stacked leaf, which part of its path names the stack, and the first layer of it."""
  for at, part in enumerate(path.split('/')[:-1]):
    if found := STACK.fullmatch(part):
      return at, int(found[1] or 0)
  return None


def is_stacked(path: str, leaf: Any) -> bool:
  """Whether axis 0 of a leaf is the layer."""
  return stack_of(path) is not None and len(leaf.shape) > 0


def virtual_paths(path: str, leaf: Any) -> list[str]:
  """The paths that patterns see: one for each layer of a stacked leaf, else the path itself.

  'trunk/layers/mlp/kernel' of shape [2, ...] gives 'trunk/layers/0/mlp/kernel' and
  'trunk/layers/1/mlp/kernel'; 'trunk/layers_from_1/mlp/kernel' gives 'trunk/layers/1/mlp/kernel'
  and 'trunk/layers/2/mlp/kernel'.
  """
  if not is_stacked(path, leaf):
    return [path]
  parts, (at, first) = path.split('/'), stack_of(path)
  layers = range(first, first + leaf.shape[0])
  return ['/'.join([*parts[:at], 'layers', str(i), *parts[at + 1 :]]) for i in layers]


def all_virtual_paths(tree: Any) -> list[str]:
  """`virtual_paths` of every leaf, in tree order."""
  return [name for path, leaf in leaf_paths(tree).items() for name in virtual_paths(path, leaf)]


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """The tree of dicts whose leaves lie at the given paths."""
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def compile_pattern(key: str, pattern: str) -> re.Pattern[str]:
  """Compiles a regular expression of the config field `key`; UserError if it is malformed."""
  try:
    return re.compile(pattern)
  except re.error as error:
    raise UserError(f'{key}: {pattern!r} is not a regular expression: {error}') from None


def matching(key: str, patterns: Sequence[str], names: Sequence[str]) -> set[str]:
  """The names that a pattern of the config field `key` is found in.

  Raises:
    UserError: for a pattern that is malformed or matches no name.
  """
  found: set[str] = set()
  for text in patterns:
    pattern = compile_pattern(key, text)
    matches = {name for name in names if pattern.search(name)}
    if not matches:
      raise unmatched(key, text, names)
    found |= matches
  return found


def unmatched(key: str, pattern: str, paths: Sequence[str]) -> UserError:
  """The error for a pattern that would silently do nothing."""
  return UserError(f'{key}: {pattern!r} matches no leaf{nearest(pattern, paths)}')
