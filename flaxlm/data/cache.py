"""Where tokenised corpora and trained tokenizers are kept: by the hash of what they are made of."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath


def directory(config: Any) -> epath.Path:
  """`config.cache_dir` (DataConfig), else $FLAXLM_CACHE, else ~/.cache/flaxlm."""
  place = config.cache_dir or os.environ.get('FLAXLM_CACHE') or '~/.cache/flaxlm'
  return epath.Path(place).expanduser()


def key(content: Any) -> str:
  """A name of 20 hexadecimal digits for what JSON says of `content`."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


@contextlib.contextmanager
def staged(target: epath.Path) -> Iterator[epath.Path]:
  """A directory that becomes `target` when the block ends without an error, as a whole.

  Another process may have made the same target meanwhile; it holds the same content and stays.
  """
  temporary = target.parent / f'{target.name}.{uuid.uuid4().hex[:8]}'
  temporary.mkdir(parents=True)
  try:
    yield temporary
    if not target.exists():
      temporary.rename(target)
  finally:
    if temporary.exists():
      temporary.rmtree()
