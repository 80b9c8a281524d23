"""The new folder that a command writes, whole or not at all; a run made of weights."""

import contextlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from flaxlm import files
from flaxlm.errors import UserError


def new(flag: str, folder: str) -> epath.Path:
  """The folder's path; UserError, which names the flag, unless it is absent or empty.

  Empty is also one that only has the lock of a run that never began.
  """
  target = epath.Path(folder)
  if target.exists() and (
    not target.is_dir() or any(path.name != files.LOCK for path in target.iterdir())
  ):
    raise UserError(f'{flag}: {target} is there already; name a new folder')
  return target


@contextlib.contextmanager
def staged(target: epath.Path) -> Iterator[epath.Path]:
  """`cache.staged`, of a folder that may be there, empty."""
  from flaxlm.data import cache

  if target.exists():
    with files.held(target):
      (target / files.LOCK).unlink(missing_ok=True)
      target.rmdir()
  with cache.staged(target) as temporary:
    yield temporary


def write_run(folder: epath.Path, config: Any, tokenizer: Any, params: Any) -> None:
  """Writes weights as a run at step 0: config.json, tokenizer/ and checkpoints/."""
  from flaxlm.config import tree
  from flaxlm.training import checkpoint
  from flaxlm.training.writers import write_json

  tokenizer.save(folder / 'tokenizer')
  write_json(folder / 'config.json', tree.to_dict(config))
  checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', config.checkpoint)
  meta = {
    'config': tree.to_dict(config),
    'tokenizer': tokenizer.fingerprint,
    'total_steps': config.total_steps,
  }
  checkpoints.save(0, {'params': params}, meta)
  checkpoints.wait()
  checkpoints.close()
