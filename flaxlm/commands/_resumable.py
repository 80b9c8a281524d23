"""Output of JSON lines that a command which was killed goes on with.

Until it is whole it lies in FILE.partial; beside it FILE.partial.json says how far it has come.
"""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from etils import epath

from flaxlm import files, terminal
from flaxlm.errors import UserError


class Lines:
  """done: rows of the input whose lines are written."""

  def __init__(self, file: TextIO, progress: pathlib.Path | None, identity: Any, done: int):
    self._file, self._progress, self._identity = file, progress, identity
    self.done = done

  def write(self, records: Sequence[dict[str, Any]], done: int) -> None:
    """Writes lines; with them, `done` rows of the input are dealt with."""
    if self._progress is None and self._file is sys.stdout:
      terminal.close()
    for record in records:
      self._file.write(json.dumps(record, ensure_ascii=False) + '\n')
    self._file.flush()
    self.done = done
    if self._progress is not None:
      os.fsync(self._file.fileno())
      state = {'identity': self._identity, 'done': done, 'bytes': self._file.tell()}
      files.write_text(self._progress, json.dumps(state))


@contextlib.contextmanager
def lines(place: str, identity: Any) -> Iterator[Lines]:
  """Lines of the file `place`, of standard output if it is ''.

  identity: JSON-able; output that was begun with another one is begun anew. An object store, which
  cannot append, gets the file when it is whole.
  """
  if not place:
    yield Lines(sys.stdout, None, identity, 0)
    return
  if files.is_object_store(place):
    import io

    buffer = io.StringIO()
    yield Lines(buffer, None, identity, 0)
    epath.Path(place).write_text(buffer.getvalue())
    return
  target = pathlib.Path(place).expanduser()
  if target.is_dir():
    raise UserError(f'--output: {target} is a directory')
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = target.with_name(target.name + '.partial')
  progress = target.with_name(target.name + '.partial.json')
  identity = json.loads(json.dumps(identity))
  with partial.open('a+', encoding='utf-8') as file:
    files.hold(file, target)
    if not partial.exists() or not os.path.samestat(os.fstat(file.fileno()), partial.stat()):
      raise UserError(f'--output: {target} was just written by another process')
    done, size = _begun(partial, progress, identity)
    file.truncate(size)
    file.seek(size)
    yield Lines(file, progress, identity, done)
    partial.replace(target)
  progress.unlink(missing_ok=True)


def _begun(partial: pathlib.Path, progress: pathlib.Path, identity: Any) -> tuple[int, int]:
  """(rows done, bytes of their lines) that can be gone on with; (0, 0) for none.

  None are of another identity, damaged, or said to be in more bytes than the file has.
  """
  try:
    state = json.loads(progress.read_text())
    there = partial.stat().st_size
  except (FileNotFoundError, ValueError):  # Not json, or not UTF-8.
    return 0, 0
  if not isinstance(state, dict) or state.get('identity') != identity:
    return 0, 0
  done, size = state.get('done'), state.get('bytes')
  if type(done) is int and type(size) is int and done >= 0 and 0 <= size <= there:
    return done, size
  return 0, 0
