"""SIGTERM and Ctrl-C: a clean end in every phase, and a save where there is something to save.

The exit status is 128 + signal: 143 after SIGTERM, 130 after Ctrl-C.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from flaxlm import terminal

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A compilation runs no Python for minutes; after this long without an answer of the main thread,
# another one does what can be done.
PATIENCE_SECONDS = 3.0


class Interrupted(SystemExit):
  """Ends the process with status 128 + signal, as shells report it.

  everywhere: whether all processes of the run have agreed to end here.
  """

  def __init__(self, signum: int, everywhere: bool = False):
    super().__init__(128 + signum)
    self.signum, self.everywhere = signum, everywhere


class Interrupts:
  """Context in which signals are received.

  Before `begin_training` a signal raises Interrupted in the main thread: there is nothing to save.
  From then on it sets `signum`, which the loop polls at every step, saves, and raises Interrupted.
  A second Ctrl-C ends the process at once, and so does the end of the time that SIGTERM leaves.
  Signals reach a thread of their own, so that the main thread may be deep in a compilation. Outside
  the main thread, where Python cannot receive signals, the context does nothing.

  rescue: what a thread calls when the main one does not answer, while it is set: it saves what the
  main thread holds and returns what there is to say; the process ends then. Set it only while the
  main thread changes nothing that is saved.
  """

  def __init__(self) -> None:
    self.signum: int | None = None
    self.rescue: Callable[[], str] | None = None
    self._training = False
    self._grace_seconds = threading.TIMEOUT_MAX
    self._received: list[int] = []
    self._answered, self._closed = threading.Event(), threading.Event()
    self._installed = False

  def __enter__(self) -> 'Interrupts':
    if threading.current_thread() is not threading.main_thread():
      return self
    self._old = {number: signal.getsignal(number) for number in SIGNALS}
    self._reader, self._writer = socket.socketpair()
    self._writer.setblocking(False)
    self._old_descriptor = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
    for number in SIGNALS:
      signal.signal(number, self._handle)
    self._old_hook, sys.unraisablehook = sys.unraisablehook, self._lost
    self._thread = threading.Thread(target=self._watch, name='signals', daemon=True)
    self._thread.start()
    self._installed = True
    return self

  def begin_training(self, grace_seconds: float = threading.TIMEOUT_MAX) -> None:
    """From here on a signal is polled, and not raised.

    grace_seconds: from SIGTERM to the end of the process, whatever the main thread does.
    """
    self._training, self._grace_seconds = True, grace_seconds
    if self.signum is not None:
      raise Interrupted(self.signum)

  def answer(self) -> None:
    """The main thread has seen the signal, and saves."""
    self._answered.set()

  def _handle(self, signum: int, frame: FrameType | None) -> None:
    """Runs in the main thread, as soon as it runs Python."""
    del frame
    self.signum = self.signum or signum
    if not self._training:
      raise Interrupted(signum)

  def _lost(self, unraisable: Any) -> None:
    """Interrupted was raised where nothing can be raised, such as in a callback of the garbage
    collector. `_stand_in` ends the process then, and there is no fault to report."""
    if not isinstance(unraisable.exc_value, Interrupted):
      self._old_hook(unraisable)

  def _watch(self) -> None:
    """Runs in the thread: sees every signal at once."""
    while True:
      received = self._reader.recv(64)
      if not received:
        return
      for signum in received:
        if signum in SIGNALS:
          self._receive(signum)

  def _receive(self, signum: int) -> None:
    self._received.append(signum)
    if self._received.count(signal.SIGINT) > 1:
      _end(signum, 'ended at once by a second Ctrl-C; the last checkpoint stands')
    if self._received.count(signum) > 1:
      return
    if len(self._received) == 1:
      self.signum = signum
      if self._training:
        terminal.say(f'{name_of(signum)}: saving after this step (a second Ctrl-C ends at once)')
      threading.Thread(target=self._stand_in, args=(signum,), daemon=True).start()
    if signum == signal.SIGTERM and self._training:
      threading.Thread(target=self._bound, daemon=True).start()

  def _stand_in(self, signum: int) -> None:
    """Acts for a main thread that does not come back from a compilation."""
    if not self._training:
      if not self._closed.wait(PATIENCE_SECONDS):
        _end(signum, f'stopped by {name_of(signum)}: nothing to save')
      return
    while not self._answered.wait(PATIENCE_SECONDS):
      if (rescue := self.rescue) is not None:
        _end(signum, f'stopped by {name_of(signum)}{rescue()}')

  def _bound(self) -> None:
    """Ends the process when the time is over that SIGTERM leaves."""
    if not self._closed.wait(self._grace_seconds):
      _end(
        signal.SIGTERM,
        f'ended {self._grace_seconds:g} s after SIGTERM (config.checkpoint.grace_seconds) without '
        'a save; the last checkpoint stands',
      )

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    if not self._installed:
      return
    self._closed.set()
    signal.set_wakeup_fd(self._old_descriptor)
    sys.unraisablehook = self._old_hook
    for number, handler in self._old.items():
      signal.signal(number, handler)
    self._writer.close()
    self._thread.join()
    self._reader.close()
    if isinstance(error, Interrupted) and not self._training:
      terminal.say(f'stopped by {name_of(error.signum)}: nothing to save')


def _end(signum: int, text: str) -> None:
  """Ends the process, whatever its threads do."""
  os.write(2, f'\n{text}\n'.encode())
  os._exit(128 + signum)


def name_of(signum: int) -> str:
  """'SIGTERM' for 15."""
  return signal.Signals(signum).name
