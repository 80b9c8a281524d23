"""What a run says while it works: phase, progress, loss, speed, time left. All of it on stderr.

On a terminal, one live line at the bottom (rich); elsewhere, plain lines, sparse enough for a log.
Imports nothing heavy, so that the first line appears at once.
"""

import atexit
import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

PHASES = ('data', 'init', 'compile', 'train', 'eval', 'save', 'decode')
HEARTBEAT_SECONDS = 10.0  # Longest silence in a log.
_START = time.monotonic()
# What -> (how many were cut, of how many), of each `cuts` that is open.
_cuts: list[dict[str, list[int]]] = []


def duration(seconds: float) -> str:
  """A time span as a person writes it: 8s, 1m05s, 2h10m."""
  seconds = max(0, round(seconds))
  if seconds < 60:
    return f'{seconds}s'
  if seconds < 3600:
    return f'{seconds // 60}m{seconds % 60:02d}s'
  return f'{seconds // 3600}h{seconds % 3600 // 60:02d}m'


def count(number: float) -> str:
  """A large number in three digits: 950, 41.2k, 1.30M."""
  for size, letter in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(number) >= size:
      return f'{number / size:.3g}{letter}'
  return f'{number:.3g}'


class Bar:
  """Progress of a known amount of work, with the time left. Made by `bar`."""

  def __init__(self, screen: '_Screen', label: str, total: float, unit: str):
    self._screen = screen
    self._label, self._total, self._unit = label, total, unit
    self._done = 0.0
    self._begin = time.monotonic()

  def advance(self, amount: float = 1) -> None:
    """Counts work as done; may be called from any thread."""
    self._done += amount
    self._screen.progress(self._text())

  def _text(self) -> str:
    share = min(1.0, self._done / self._total) if self._total else 1.0
    elapsed = time.monotonic() - self._begin
    text = f'{self._label} {share:4.0%}  {count(self._done)}/{count(self._total)} {self._unit}'
    if 0 < share < 1:
      text += f'  {duration(elapsed * (1 - share) / share)} left'
    return text

  def close(self) -> None:
    """Says how much was done and how long it took."""
    elapsed = duration(time.monotonic() - self._begin)
    self._screen.done(f'{self._label}: {count(self._done)} {self._unit} in {elapsed}')


class _Screen:
  """State of the output: the phase, the text of the live line, and when something was last said."""

  def __init__(self) -> None:
    self._lock = threading.RLock()
    self._phase = ''
    self._phase_begin = self._last_said = _START
    self._stepped = False  # Whether this stretch of training has shown a step.
    self._text = ''
    self._live: Any = None
    self._heart: threading.Thread | None = None
    self._prefix = ''
    self._quiet = False

  def phase(self, name: str, detail: str) -> None:
    with self._lock:
      self._phase, self._text = name, detail
      self._phase_begin = time.monotonic()
      self.line(detail)
      if self._heart is None:
        self._heart = threading.Thread(target=self._beat, name='terminal', daemon=True)
        self._heart.start()
        atexit.register(self.close)
      if self._live is None and sys.stderr.isatty() and not self._quiet:
        self._open_live()

  def only_warnings(self, prefix: str) -> None:
    with self._lock:
      self.close()
      self._quiet, self._prefix = True, prefix

  def line(self, text: str, style: str = '', always: bool = False) -> None:
    """One line that stays."""
    with self._lock:
      self._last_said = time.monotonic()
      if self._quiet and not always:
        return
      text = self._prefix + text
      stamp = f'{duration(self._last_said - _START):>7} {self._phase:8}{text}'.rstrip()
      if self._live is not None:
        from rich.text import Text

        self._live.console.print(Text(stamp, style=style))
      else:
        print(stamp, file=sys.stderr, flush=True)

  def done(self, text: str) -> None:
    """A line that ends what `progress` showed."""
    with self._lock:
      self._text = ''
      self.line(text)

  def progress(self, text: str, last: bool = False) -> None:
    """The text of the live line; in a log, a line now and then, ever more rarely."""
    with self._lock:
      self._text = text
      now = time.monotonic()
      pause = min(60.0, max(5.0, (now - self._phase_begin) / 20))
      if last or (self._live is None and now - self._last_said >= pause):
        self.line(text)

  def step(self, text: str, last: bool) -> None:
    with self._lock:
      first, self._stepped = not self._stepped, True
      self.progress(text, last or (first and self._live is None))

  def close(self) -> None:
    """Takes the live line away."""
    with self._lock:
      if self._live is not None:
        self._live.stop()
        self._live = None

  def _open_live(self) -> None:
    from rich.console import Console
    from rich.live import Live

    self._live = Live(
      console=Console(stderr=True),
      get_renderable=self._render,
      refresh_per_second=4,
      transient=True,
    )
    self._live.start()

  def _render(self) -> Any:
    from rich.text import Text

    elapsed = duration(time.monotonic() - self._phase_begin)
    return Text.assemble((f'{self._phase:8}', 'bold cyan'), f'{self._text}  ', (elapsed, 'dim'))

  def _beat(self) -> None:
    """In a log, says that a long phase is still at work. On a terminal the live line does."""
    while True:
      time.sleep(1.0)
      with self._lock:
        now = time.monotonic()
        spent = now - self._phase_begin
        # The pause grows with the phase, so that an hour does not fill the log.
        if self._live is None and now - self._last_said >= max(HEARTBEAT_SECONDS, spent / 10):
          self.line(f'{self._text}  (working for {duration(spent)})'.lstrip())


_SCREEN = _Screen()


def phase(name: str, detail: str = '') -> None:
  """Starts a phase, one of PHASES, with a line; a long silence in it is broken by a heartbeat."""
  if name not in PHASES:
    raise ValueError(f'phases are {PHASES}, not {name!r}')
  _SCREEN.phase(name, detail)


@contextlib.contextmanager
def bar(label: str, total: float, unit: str) -> Iterator[Bar]:
  """Progress of `total` units of work: `with bar('tokenise', n, 'documents') as b: b.advance()`."""
  progress = Bar(_SCREEN, label, total, unit)
  yield progress
  progress.close()


def step(step: int, total: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
  """Progress of training. In a log the first and last step are shown, and others now and then."""
  text = (
    f'step {step}/{total}  loss {loss:.4f}  {count(tokens_per_second)} tokens/s  '
    f'{duration(seconds_left)} left'
  )
  _SCREEN.step(text, last=step >= total)


def say(text: str, always: bool = False) -> None:
  """A line that stays. always: also of a process that says warnings only."""
  _SCREEN.line(text, always=always)


def warn(text: str) -> None:
  """A warning that stays."""
  _SCREEN.line(f'warning: {text}', style='yellow', always=True)


def cut(number: int, total: int, what: str) -> None:
  """Warns that `number` of `total` texts or the like were cut, if any; see `cuts`."""
  if _cuts:
    sums = _cuts[-1].setdefault(what, [0, 0])
    sums[0] += number
    sums[1] += total
  elif number:
    warn(f'{number} of {total} {what}, and are cut')


@contextlib.contextmanager
def cuts(said: bool = True) -> Iterator[None]:
  """Adds up what `cut` is told inside and, if `said`, warns of the sums at the end."""
  _cuts.append({})
  try:
    yield
  finally:
    for what, (number, total) in _cuts.pop().items():
      if said:
        cut(number, total, what)


def only_warnings(prefix: str) -> None:
  """From here on only warnings are said, after a prefix: of many processes, one reports."""
  _SCREEN.only_warnings(prefix)


def close() -> None:
  """Takes the live line away, so that an error or a result can be printed."""
  _SCREEN.close()
