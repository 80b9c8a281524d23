"""How fast a run is, and how long it still takes."""

import time

import numpy as np


class Clock:
  """Real tokens per second, over the stretches spent training, and the time left."""

  def __init__(self) -> None:
    self._since: float | None = None  # of the current stretch; None between stretches
    self._seconds = self._tokens = 0.0
    self._steps = 0
    self._pace = 0.0  # seconds per step over the whole run, evaluation and saving included
    self._begin: float | None = None
    self._shown = float('nan')

  def step(self, tokens: float) -> None:
    """A step is complete. The first one of a stretch, which may compile, only starts the clock."""
    now = time.monotonic()
    if self._begin is None:
      self._begin = now
    else:
      self._steps += 1
      self._pace = (now - self._begin) / self._steps
    if self._since is not None:
      self._seconds += now - self._since
      self._tokens += tokens
    self._since = now

  def pause(self) -> None:
    """What follows, until the next step, is not training."""
    self._since = None

  def take_rate(self) -> float:
    """Tokens per second since the last call; NaN if no step was timed since."""
    rate = self._tokens / self._seconds if self._seconds else float('nan')
    self._seconds = self._tokens = 0.0
    self._shown = rate if np.isfinite(rate) else self._shown
    return rate

  def shown_rate(self) -> float:
    """A rate that is steady enough to look at: of the last stretch that was long enough."""
    if not np.isfinite(self._shown) and self._seconds:
      return self._tokens / self._seconds
    return self._shown

  def seconds_left(self, steps: int) -> float:
    return self._pace * steps
