"""Batches made ahead of the step by other processes, the same for any number of them.

Each of n workers makes the batches of every n-th step, as a whole, and hands them over in shared
memory. A batch is a function of its step, so that it does not matter who makes it. Imports
nothing heavy: a worker reads this file before it knows what it will work on.
"""

import atexit
import contextlib
import ctypes
import itertools
import multiprocessing.util  # Registers its end before `Workers` registers its own.
import os
import pickle
import signal
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np

from flaxlm.errors import UserError

_ALIGNMENT = 64  # Bytes; that of a cache line.
# A run that is asked to stop may still need batches: its end, and only that, ends the workers.
_HELD_BACK = {signal.SIGINT, signal.SIGTERM}
# Key -> (offset in a slot, shape, dtype) of a batch in shared memory.
Layout = dict[str, tuple[int, tuple[int, ...], np.dtype]]


class Workers:
  """The batches of a pipeline from `start_step` on, without end. `close` must be called.

  data: a `pipeline.Pipeline`, which is sent to each worker; ahead: batches to make ahead, at least
  one by each worker. What a batch raises is raised by `next`. Workers end with this process,
  however it ends: they read from a pipe that then has no other end.
  """

  def __init__(self, data: Any, start_step: int, number: int, ahead: int):
    content = _pickled(data)
    self._layout, self._size = _layout(data.empty_batch())
    self._slots = max(1, -(-ahead // number))
    self._steps = itertools.count(start_step)
    self._turn = 0
    self._pipes, self._processes = [], []
    atexit.register(self.close)  # Called before multiprocessing's own, which would wait for ever.
    try:
      self._start(number)
      for worker in range(number):
        self._send(worker, content)
      for _, worker in itertools.product(range(self._slots), range(number)):
        self._send(worker, next(self._steps))
    except BaseException:
      self.close()
      raise

  def _start(self, number: int) -> None:
    context = multiprocessing.get_context('spawn')
    self._memories = [
      context.RawArray(ctypes.c_byte, self._size * self._slots)  # a file that has no name any more
      for _ in range(number)
    ]
    for memory in self._memories:
      here, there = context.Pipe()
      process = context.Process(
        target=_work, args=(there, memory, self._layout, self._size), name='batches', daemon=True
      )
      with _signals_held_back():
        process.start()
      there.close()
      self._pipes.append(here)
      self._processes.append(process)

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    slot, worker = divmod(self._turn, len(self._pipes))
    try:
      error = self._pipes[worker].recv()
    except (EOFError, OSError):
      raise self._lost(worker) from None
    if error is not None:
      raise error
    slot = slot % self._slots * self._size
    found = {  # Copies: the worker writes the next batch to the same place.
      key: array.copy() for key, array in _views(self._memories[worker], slot, self._layout).items()
    }
    self._turn += 1
    self._send(worker, next(self._steps))
    return found

  def _send(self, worker: int, message: Any) -> None:
    """A step, or the pickled pipeline."""
    try:
      if isinstance(message, bytes):
        self._pipes[worker].send_bytes(message)
      else:
        self._pipes[worker].send(message)
    except OSError:
      raise self._lost(worker) from None

  def _lost(self, worker: int) -> UserError:
    process = self._processes[worker]
    process.join(5)
    status = process.exitcode
    how = f'by {signal.Signals(-status).name}' if status and status < 0 else f'with status {status}'
    return UserError(
      f'config.data.num_workers: worker process {process.pid} ended {how} before its batch was '
      'made; if memory ran out, use fewer'
    )

  def close(self) -> None:
    """Ends the workers at once; they hold nothing that could be lost."""
    atexit.unregister(self.close)
    for pipe in self._pipes:
      pipe.close()
    for process in self._processes:
      process.kill()
    for process in self._processes:
      process.join()


def _pickled(data: Any) -> bytes:
  try:
    return pickle.dumps(data, pickle.HIGHEST_PROTOCOL)
  except Exception as error:  # Of any kind: whatever the objective holds.
    raise UserError(
      f'config.data.num_workers: the objective {type(data.objective).__module__} or its rows '
      f'cannot be sent to another process ({error}); set num_workers=0, or give it a __reduce__'
    ) from error


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
  """A process that is started meanwhile never gets these signals; this one, afterwards."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _layout(batch: dict[str, np.ndarray]) -> tuple[Layout, int]:
  """Where each array of a batch lies in a slot, and the bytes of a slot."""
  layout: Layout = {}
  offset = 0
  for key, array in batch.items():
    layout[key] = offset, array.shape, array.dtype
    offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
  return layout, offset


def _views(memory: Any, slot: int, layout: Layout) -> dict[str, np.ndarray]:
  """The arrays of the batch that begins at byte `slot`, in place."""
  return {
    key: np.frombuffer(memory, dtype, int(np.prod(shape)), slot + offset).reshape(shape)
    for key, (offset, shape, dtype) in layout.items()
  }


# ------------------------------------------------------------------------------ in the worker


def _work(pipe: Any, memory: Any, layout: Layout, size: int) -> None:
  """Makes the batch of each step it is told, in one slot after the other, until nobody asks."""
  os.environ['JAX_PLATFORMS'] = 'cpu'  # The accelerators are the other process's.
  slots = itertools.cycle(range(0, len(memory), size))
  try:
    data = None
    content = pipe.recv_bytes()
    while True:
      step = pipe.recv()
      try:
        data = data or pickle.loads(content)
        content = b''
        places = _views(memory, next(slots), layout)
        for key, array in data.batch(step).items():
          places[key][...] = array
        error = None
      except Exception as raised:  # Of any kind: it is raised where the batch is wanted.
        error = _portable(raised)
      pipe.send(error)
  except (EOFError, OSError):
    pass  # The other end is gone.


def _portable(error: Exception) -> Exception:
  """The error as it can be sent, with its traceback as a note if it is no mistake of the user's."""
  text = ''.join(traceback.format_exception(error))
  if not isinstance(error, UserError):
    error.add_note(f'in a worker process (config.data.num_workers):\n{text}')
  try:
    pickle.loads(pickle.dumps(error))
  except Exception:  # An exception class may take other arguments than it keeps.
    return RuntimeError(text)
  return error
