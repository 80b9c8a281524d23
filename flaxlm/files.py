"""Files as local disks and object stores both have them.

An object store, whose paths have a scheme (gs://), can neither append to a file nor rename one, and
has no empty folders. There a file appears as a whole when it is written, and what is made of
several files is complete when the last of them is there.
"""

import contextlib
import json
import os
import re
import socket
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any, TextIO

from etils import epath

from flaxlm.errors import UserError, nearest

try:
  import fcntl
except ImportError:  # not a Unix
  fcntl = None

# What lies in a folder that a process holds or has held.
LOCK = '.lock'


def is_object_store(path: epath.PathLike) -> bool:
  """Whether files there cannot be appended to and renamed."""
  return '://' in str(path)


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes a file as a whole or not at all, also where several processes write the same."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  if is_object_store(path):
    path.write_text(text)
    return
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex[:8]}'
  temporary.write_text(text)
  temporary.replace(path)


@contextlib.contextmanager
def held(folder: epath.PathLike) -> Iterator[None]:
  """Within it, the folder is this process's: others that ask for it end in a UserError.

  However the process ends, the kernel gives the folder free. Where files cannot be locked (object
  stores, some network file systems) nobody is kept out.
  """
  if is_object_store(folder):
    yield
    return
  with contextlib.ExitStack() as stack:
    with storing(folder):
      epath.Path(folder).mkdir(parents=True, exist_ok=True)
      # Left there: who waits for a file that is then removed would hold another one.
      file = stack.enter_context(open(os.path.join(folder, LOCK), 'a+'))
    try:
      locked = _lock(file)
    except BlockingIOError:
      file.seek(0)
      raise _at_work(folder, file.read()) from None
    if locked:
      with storing(folder):
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
    yield


def hold(file: TextIO, name: epath.PathLike) -> None:
  """Holds an open file until it is closed, as `held` does a folder; `name`: for the message."""
  try:
    _lock(file)
  except BlockingIOError:
    raise _at_work(name) from None


def _lock(file: TextIO) -> bool:
  """Whether it is locked now, until it is closed; BlockingIOError if another process has it."""
  if fcntl is None:
    return False
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise
  except OSError:  # no locks here
    return False
  return True


def _at_work(place: epath.PathLike, who: str = '') -> UserError:
  who = who or 'another process'
  return UserError(f'{place}: {who} is at work there; wait for its end, or name another')


@contextlib.contextmanager
def storing(place: epath.PathLike) -> Iterator[None]:
  """Within it, a disk that takes no more (or forbids it) is a UserError that names the place.

  Libraries raise errors of all kinds for it; that of the system is in what they say.
  """
  try:
    yield
  except Exception as error:
    said = re.search(r"os_error_code='(\d+)'", str(error))
    if not said and not isinstance(error, OSError):
      raise
    reason = os.strerror(int(said[1])) if said else error.strerror or error
    raise UserError(f'{place}: cannot be written: {reason}') from error


def read_json(path: epath.Path) -> dict[str, Any]:
  """The object in a JSON file; UserError, which names the file, if there is none."""
  try:
    content = json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(f'{path}: there is no such file') from None
  except json.JSONDecodeError as error:
    raise UserError(f'{path}:{error.lineno}: malformed JSON: {error.msg}') from None
  except UnicodeDecodeError as error:
    raise UserError(f'{path}: not UTF-8 text: {error}') from None
  if not isinstance(content, dict):
    raise UserError(f'{path}: expected a JSON object')
  return content


def nearest_sibling(path: epath.Path) -> str:
  """`errors.nearest` among what lies beside a path that does not exist; '' without its folder."""
  names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
  return nearest(path.name, sorted(names))


def children(directory: epath.PathLike) -> Iterator[epath.Path]:
  """What lies in a folder, if it exists: an empty one does not on an object store."""
  with contextlib.suppress(FileNotFoundError):
    yield from epath.Path(directory).iterdir()


def move_folder(source: epath.Path, target: epath.Path) -> None:
  """Moves a folder with all that is in it; file by file where nothing can be renamed."""
  if not is_object_store(source):
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    return
  _copy(source, target)
  source.rmtree()


def _copy(source: epath.Path, target: epath.Path) -> None:
  target.mkdir(parents=True, exist_ok=True)
  for path in source.iterdir():
    if path.is_dir():
      _copy(path, target / path.name)
    else:
      (target / path.name).write_bytes(path.read_bytes())


class LocalFolder:
  """A folder for libraries that know local disks only. `path`: where they write.

  It is `target` itself or, of an object store, a temporary one from which `publish` copies.
  """

  def __init__(self, target: epath.PathLike):
    self._target = epath.Path(target)
    self._temporary: tempfile.TemporaryDirectory[str] | None = None
    self.path = str(target)
    if is_object_store(target):
      self._temporary = tempfile.TemporaryDirectory()
      self.path = self._temporary.name

  def publish(self) -> None:
    """Makes what was written so far visible at the target."""
    if self._temporary is not None:
      _copy(epath.Path(self.path), self._target)
