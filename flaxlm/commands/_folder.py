"""The new folder that a command writes, whole or not at all."""

import contextlib
from collections.abc import Iterator

from etils import epath

from flaxlm.errors import UserError


def new(flag: str, folder: str) -> epath.Path:
  """The folder's path; UserError, which names the flag, unless it is absent or empty."""
  target = epath.Path(folder)
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise UserError(f'{flag}: {target} is there already; name a new folder')
  return target


@contextlib.contextmanager
def staged(target: epath.Path) -> Iterator[epath.Path]:
  """`cache.staged`, of a folder that may be there, empty."""
  from flaxlm.data import cache

  if target.exists():
    target.rmdir()
  with cache.staged(target) as temporary:
    yield temporary
