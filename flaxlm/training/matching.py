"""Which leaf of a checkpoint each leaf of a model takes: all accounted for, or an error."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flaxlm.config.schema import RestoreConfig
from flaxlm.errors import UserError, nearest
from flaxlm.training.paths import compile_pattern, unmatched, virtual_paths

_SKIP = 'config.restore.skip'
_RENAME = 'config.restore.rename'


@dataclasses.dataclass(frozen=True)
class Part:
  """A leaf, or one layer of a stacked leaf: `path` is that of the whole, `shape` of the part."""

  path: str
  layer: int | None
  shape: tuple[int, ...]


def parts(leaves: Mapping[str, Any]) -> dict[str, Part]:
  """Virtual path -> part, of leaves by path."""
  found = {}
  for path, leaf in leaves.items():
    names = virtual_paths(path, leaf)
    for layer, name in enumerate(names):
      whole = names == [path]
      shape = tuple(leaf.shape if whole else leaf.shape[1:])
      found[name] = Part(path, None if whole else layer, shape)
  return found


def match(
  stored: Mapping[str, Part], wanted: Mapping[str, Part], restore: RestoreConfig
) -> dict[str, Part | None]:
  """Decides for every virtual path of the model which part of the checkpoint it takes.

  Args:
    stored: the checkpoint's, by virtual path.
    wanted: the model's, by virtual path.
    restore: `rename` is applied first; `skip` then sees the paths of the checkpoint, before and
      after it, and of the model.

  Returns:
    Virtual path of the model -> part of the checkpoint, or None for one that stays as initialised.

  Raises:
    UserError: for a part of either that is neither loaded nor declared, for shapes of different
      sizes, and for a pattern that matches nothing.
  """
  renamed = _rename(list(stored), restore.rename)
  skipped = _skipped(restore.skip, [*renamed, *renamed.values(), *wanted])
  plan: dict[str, Part | None] = {}
  for path, new in renamed.items():
    if path in skipped or new in skipped:
      continue
    if new not in wanted:
      raise UserError(
        f'{_SKIP}: leaf {new} of the checkpoint has no place in the model{nearest(new, wanted)}; '
        'skip it or rename it'
      )
    _check_sizes(new, stored[path].shape, wanted[new].shape)
    plan[new] = stored[path]
  for path in wanted:
    if path not in plan and path not in skipped:
      raise UserError(
        f'{_SKIP}: leaf {path} of the model is not in the checkpoint'
        f'{nearest(path, renamed.values())}; skip it to start it afresh, or rename one to it'
      )
    plan.setdefault(path, None)
  if not any(plan.values()):
    raise UserError(f'{_SKIP}: skips every leaf, so that nothing would be loaded')
  return plan


def _check_sizes(path: str, stored: tuple[int, ...], wanted: tuple[int, ...]) -> None:
  if math.prod(stored) != math.prod(wanted):
    raise UserError(
      f'{_SKIP}: leaf {path} is {list(stored)} in the checkpoint and {list(wanted)} in the model; '
      'skip it to start it afresh'
    )


def _rename(paths: Sequence[str], rules: Sequence[str]) -> dict[str, str]:
  """Checkpoint path -> model path, by the first rule whose pattern is found in it."""
  parsed = []
  for rule in rules:
    pattern, equals, replacement = rule.rpartition('=')
    if not equals:
      raise UserError(f'{_RENAME}: {rule!r} is not PATTERN=REPLACEMENT')
    parsed.append((compile_pattern(_RENAME, pattern), replacement))
    if not any(parsed[-1][0].search(path) for path in paths):
      raise unmatched(_RENAME, pattern, paths)
  renamed: dict[str, str] = {}
  for path in paths:
    new = path
    for pattern, replacement in parsed:
      if pattern.search(path):
        try:
          new = pattern.sub(replacement, path)
        except (re.error, IndexError) as error:
          raise UserError(f'{_RENAME}: {replacement!r} is no replacement: {error}') from None
        break
    if new in renamed.values():
      raise UserError(f'{_RENAME}: two leaves of the checkpoint become {new}')
    renamed[path] = new
  return renamed


def _skipped(patterns: Sequence[str], paths: Iterable[str]) -> set[str]:
  paths = list(dict.fromkeys(paths))
  skipped: set[str] = set()
  for text in patterns:
    pattern = compile_pattern(_SKIP, text)
    found = {path for path in paths if pattern.search(path)}
    if not found:
      raise unmatched(_SKIP, text, paths)
    skipped |= found
  return skipped


@dataclasses.dataclass
class Report:
  """What became of every leaf, by path; single layers of a stack are named where they differ."""

  loaded: list[str]
  reshaped: list[str]
  fresh: list[str]
  dropped: list[str]


def report(
  plan: Mapping[str, Part | None], stored: Mapping[str, Part], wanted: Mapping[str, Part]
) -> Report:
  """The report of a plan that `match` made of `stored` and `wanted`."""
  taken = {(part.path, part.layer) for part in plan.values() if part}
  moved = [path for path, part in plan.items() if part and part.shape != wanted[path].shape]
  loaded = [path for path, part in plan.items() if part and path not in moved]
  fresh = [path for path, part in plan.items() if not part]
  dropped = [path for path, part in stored.items() if (part.path, part.layer) not in taken]
  return Report(
    _folded(loaded, wanted), _folded(moved, wanted), _folded(fresh, wanted),
    _folded(dropped, stored),
  )  # fmt: skip


def _folded(names: Sequence[str], all_parts: Mapping[str, Part]) -> list[str]:
  """Names with whole stacks written as one path."""
  layers: dict[str, int] = {}
  for part in all_parts.values():
    layers[part.path] = layers.get(part.path, 0) + 1
  found: dict[str, list[str]] = {}
  for name in names:
    found.setdefault(all_parts[name].path, []).append(name)
  folded: list[str] = []
  for path, members in found.items():
    folded += [path] if len(members) == layers[path] else members
  return folded
