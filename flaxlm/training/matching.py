"""Which leaf of a checkpoint each leaf of a model takes: all accounted for, or an error."""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flaxlm.config.schema import RestoreConfig
from flaxlm.errors import UserError, nearest
from flaxlm.paths import compile_pattern, is_stacked, matching, unmatched, virtual_paths

_SKIP = 'config.restore.skip'
_RENAME = 'config.restore.rename'
_REUSE = 'config.restore.reuse'


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
      whole = not is_stacked(path, leaf)
      shape = tuple(leaf.shape if whole else leaf.shape[1:])
      found[name] = Part(path, None if whole else layer, shape)
  return found


def match(
  stored: Mapping[str, Part],
  wanted: Mapping[str, Part],
  restore: RestoreConfig,
  grown: Collection[str] = (),
) -> dict[str, Part | None]:
  """Decides for every virtual path of the model which part of the checkpoint it takes.

  Args:
    stored: the checkpoint's, by virtual path.
    wanted: the model's, by virtual path.
    restore: `rename` is applied first; `reuse` then takes leaves that the model has and no rename
      fills; `skip` sees the other paths of the checkpoint, before and after rename, and of the
      model.
    grown: paths of the model whose first axis may be longer than in the checkpoint.

  Returns:
    Virtual path of the model -> part of the checkpoint, or None for one that stays as initialised.

  Raises:
    UserError: for a part of either that is neither loaded nor declared, for shapes of different
      sizes, and for a pattern that matches nothing.
  """
  renamed = _rename(list(stored), restore.rename)
  reused = _reused(stored, wanted, renamed, restore.reuse)
  candidates = list(dict.fromkeys([*renamed, *renamed.values(), *wanted]))
  skipped = matching(_SKIP, restore.skip, candidates)
  plan: dict[str, Part | None] = {new: stored[path] for path, new in reused.items()}
  for path, new in renamed.items():
    if path in reused or path in skipped or new in skipped:
      continue
    if new not in wanted:
      raise UserError(
        f'{_SKIP}: leaf {new} of the checkpoint has no place in the model{nearest(new, wanted)}; '
        'skip it or rename it'
      )
    rows = slice(1, None) if new in grown else slice(None)
    _check_sizes(_SKIP, new, stored[path].shape[rows], wanted[new].shape[rows])
    plan[new] = stored[path]
  for path in wanted:
    if path not in plan and path not in skipped:
      raise UserError(
        f'{_SKIP}: leaf {path} of the model is not in the checkpoint'
        f'{nearest(path, renamed.values())}; skip it to start it afresh, or rename one to it'
      )
  if not plan:
    raise UserError(f'{_SKIP}: skips every leaf, so that nothing would be loaded')
  return {path: plan.get(path) for path in wanted}


def _check_sizes(key: str, path: str, stored: tuple[int, ...], wanted: tuple[int, ...]) -> None:
  if math.prod(stored) != math.prod(wanted):
    how = 'skip it' if key == _SKIP else 'leave out the rule'
    raise UserError(
      f'{key}: leaf {path} is {list(stored)} in the checkpoint and {list(wanted)} in the model; '
      f'{how} to start it afresh'
    )


def _parsed(key: str, rules: Sequence[str]) -> list[tuple[re.Pattern[str], str]]:
  """(pattern, replacement) of each rule of the field `key`."""
  parsed = []
  for rule in rules:
    pattern, equals, replacement = rule.rpartition('=')
    if not equals:
      raise UserError(f'{key}: {rule!r} is not PATTERN=REPLACEMENT')
    parsed.append((compile_pattern(key, pattern), replacement))
  return parsed


def _replaced(key: str, rules: Sequence[tuple[re.Pattern[str], str]], path: str) -> str | None:
  """What the first rule whose pattern is found in a path makes of it; None if none is."""
  for pattern, replacement in rules:
    if pattern.search(path):
      try:
        return pattern.sub(replacement, path)
      except (re.error, IndexError) as error:
        raise UserError(f'{key}: {replacement!r} is not a replacement: {error}') from None
  return None


def _rename(paths: Sequence[str], rules: Sequence[str]) -> dict[str, str]:
  """Checkpoint path -> model path, of every path."""
  parsed = _parsed(_RENAME, rules)
  for pattern, _ in parsed:
    if not any(pattern.search(path) for path in paths):
      raise unmatched(_RENAME, pattern.pattern, paths)
  renamed: dict[str, str] = {}
  for path in paths:
    new = _replaced(_RENAME, parsed, path) or path
    if new in renamed.values():
      raise UserError(f'{_RENAME}: two leaves of the checkpoint become {new}')
    renamed[path] = new
  return renamed


def _reused(
  stored: Mapping[str, Part],
  wanted: Mapping[str, Part],
  renamed: Mapping[str, str],
  rules: Sequence[str],
) -> dict[str, str]:
  """Checkpoint path -> model path, of the leaves that both have; a rename comes before."""
  parsed = _parsed(_REUSE, rules)
  taken = {new for path, new in renamed.items() if new != path}
  reused: dict[str, str] = {}
  for path in stored:
    new = _replaced(_REUSE, parsed, path)
    if new not in wanted or new in taken or renamed[path] != path:
      continue
    if new in reused.values():
      raise UserError(f'{_REUSE}: two leaves of the checkpoint become {new}')
    _check_sizes(_REUSE, new, stored[path].shape, wanted[new].shape)
    reused[path] = new
  return reused


@dataclasses.dataclass
class Report:
  """What became of every leaf, by path; single layers of a stack are named where they differ.

  grown: loaded, with rows for further tokens of the vocabulary. renamed: 'PATH IN THE CHECKPOINT ->
  PATH', of those that are not fresh and have another there.
  """

  loaded: list[str]
  reshaped: list[str]
  grown: list[str]
  fresh: list[str]
  dropped: list[str]
  renamed: list[str]


def report(
  plan: Mapping[str, Part | None],
  stored: Mapping[str, Part],
  wanted: Mapping[str, Part],
  grown: Collection[str] = (),
) -> Report:
  """The report of a plan that `match` made of `stored`, `wanted` and `grown`."""
  taken = {(part.path, part.layer) for part in plan.values() if part}
  found = [path for path, part in plan.items() if part and path not in grown]
  moved = [path for path in found if plan[path].shape != wanted[path].shape]
  loaded = [path for path in found if path not in moved]
  fresh = [path for path, part in plan.items() if not part]
  dropped = [path for path, part in stored.items() if (part.path, part.layer) not in taken]
  return Report(
    _folded(loaded, wanted), _folded(moved, wanted), [path for path in grown if plan[path]],
    _folded(fresh, wanted), _folded(dropped, stored), _renamed(plan, stored, wanted),
  )  # fmt: skip


def _renamed(
  plan: Mapping[str, Part | None], stored: Mapping[str, Part], wanted: Mapping[str, Part]
) -> list[str]:
  """Paths that are others in the checkpoint; a stack that is another, layer for layer, once."""
  names = {(part.path, part.layer): path for path, part in stored.items()}
  old = {path: names[part.path, part.layer] for path, part in plan.items() if part}
  moved = [path for path in old if old[path] != path]
  in_step = [path for path in moved if plan[path].layer == wanted[path].layer]
  found = [f'{old[path]} -> {path}' for path in moved if path not in in_step]
  for path in _folded(in_step, wanted):
    origins = {plan[p].path for p in in_step if wanted[p].path == path}
    found += [f'{origin} -> {path}' for origin in origins or [old[path]]]
  return found


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
