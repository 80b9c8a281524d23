"""Where tokenised corpora and trained tokenizers are kept: by the hash of what they are made of."""

import contextlib
import hashlib
import json
import os
import uuid
import zipfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from flaxlm import files
from flaxlm.config.data import DataConfig
from flaxlm.errors import UserError, first_line

BIG = 1 << 28  # Bytes; hashing fewer takes less than a second.


def directory(config: DataConfig) -> epath.Path:
  """`config.cache_dir`, else $FLAXLM_CACHE, else ~/.cache/flaxlm."""
  place = config.cache_dir or os.environ.get('FLAXLM_CACHE') or '~/.cache/flaxlm'
  return epath.Path(place).expanduser()


def key(content: Any) -> str:
  """A name of 20 hexadecimal digits for what JSON says of `content`."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def digest(config: DataConfig, path: epath.Path) -> list[Any]:
  """Name, size and sha256 of a file's bytes.

  The hash of a big file is kept beside its modification time, so that it is read once.
  """
  stat = path.stat()
  kept = directory(config) / 'digests' / key([str(path), stat.length, stat.mtime])
  if stat.length >= BIG and kept.exists():
    return [path.name, stat.length, kept.read_text()]
  sha = hashlib.sha256()
  with path.open('rb') as file:
    while block := file.read(1 << 22):
      sha.update(block)
  if stat.length >= BIG:
    files.write_text(kept, sha.hexdigest())
  return [path.name, stat.length, sha.hexdigest()]


@contextlib.contextmanager
def intact(path: epath.Path) -> Iterator[None]:
  """Within it, files of the cache that are not what was written are a UserError."""
  try:
    yield
  except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(
      f'{path}: damaged ({first_line(error)}); delete it, and the same command makes it again'
    ) from error


@contextlib.contextmanager
def staged(target: epath.Path) -> Iterator[epath.Path]:
  """A directory that becomes `target` when the block ends without an error, as a whole.

  Another process may have made the same target meanwhile; it holds the same content and stays. On
  an object store, which cannot rename, it is `target` itself: write last what readers look for.
  """
  if files.is_object_store(target):
    yield target
    return
  temporary = target.parent / f'{target.name}.{uuid.uuid4().hex[:8]}'
  temporary.mkdir(parents=True)
  try:
    yield temporary
    try:
      temporary.rename(target)
    except OSError:
      if not target.exists():
        raise
  finally:
    if temporary.exists():
      temporary.rmtree()
