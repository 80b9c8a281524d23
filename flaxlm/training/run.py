"""What goes on beside the steps: their metrics, evaluation, checkpoints, and the end."""

import contextlib
import dataclasses
import functools
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent import futures
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath

from flaxlm import distributed, terminal
from flaxlm.config import tree
from flaxlm.training import begin, checkpoint, digest, writers
from flaxlm.training.agreement import Vote
from flaxlm.training.clock import Clock
from flaxlm.training.detours import Detours, Judge
from flaxlm.training.interrupt import Interrupted, Interrupts, name_of
from flaxlm.training.profile import Profile
from flaxlm.training.validation import Validation
from flaxlm.types import Mean, TrainState

if TYPE_CHECKING:
  from flaxlm.training.experiment import Experiment

# Steps in flight. Their metrics are read this late, so that the device never waits for the host.
_LAG = 2


class Run:
  """A run from `step` on, as the loop sees it. `close` must be called at its end.

  detours: those on the way to `step`.
  """

  def __init__(
    self,
    experiment: 'Experiment',
    workdir: epath.Path,
    step: int,
    detours: Detours,
    interrupts: Interrupts,
  ):
    self.experiment, self.config = experiment, experiment.config
    self.total = experiment.total_steps
    self.profile = Profile(self.config.profile, workdir, step, self.total)
    self._workdir, self._interrupts = workdir, interrupts
    self.asked_to_stop = Vote(experiment.mesh, lambda: interrupts.signum)
    self._step = self._first = step
    self._pending: deque[tuple[int, dict[str, Any]]] = deque()
    self._clock, self._judge = Clock(), Judge(experiment, detours)
    self._saving = threading.Lock()
    self._prepared: futures.Future | None = None
    self._checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', self.config.checkpoint)
    self._writers = writers.Writers(workdir, self.config, step + 1)
    self.validation = Validation(
      experiment, workdir, self._checkpoints, self._writers, self.asked_to_stop
    )
    self._meta = {
      'config': tree.to_dict(self.config),
      'tokenizer': experiment.tokenizer.fingerprint,
      'total_steps': self.total,
      'corpus': experiment.train_data.corpus,
      'held_out': experiment.held_out,
    }

  def goes_on(self, step: int) -> bool:
    """Whether there is another step to do."""
    return step < self.total and not self.validation.is_exhausted()

  def begin(self) -> None:
    """From here on a signal is polled; the next step is the first, and is compiled."""
    self._interrupts.begin_training(self.config.checkpoint.grace_seconds)
    if not self.goes_on(self._step):
      return
    terminal.phase('compile', f'step {self._step + 1} of {self.total}')
    self._interrupts.rescue = self._nothing_new

  # Metrics

  def step_done(self, step: int, metrics: dict[str, Any]) -> None:
    """Takes the metrics of a step that was started; reads those of an older one."""
    self._step = step
    self._pending.append((step, metrics))
    if step == self._first + 1:
      self._drain()
      self._interrupts.rescue = None
      self._prepared = digest.prepare(self.experiment.abstract_state)
      terminal.phase('train', f'{self.total - self._first} steps')
    while len(self._pending) > _LAG:
      self._read(*self._pending.popleft())

  def _drain(self) -> None:
    while self._pending:
      self._read(*self._pending.popleft())

  def _read(self, step: int, metrics: dict[str, Any]) -> None:
    """Judges a step, shows it, and writes its line if one is due."""
    leaf_norms = metrics['leaf_norms']
    host = jax.device_get({k: v for k, v in metrics.items() if k != 'leaf_norms'})
    values = {k: v.value() if isinstance(v, Mean) else float(v) for k, v in host.items()}
    updates = self._judge.look(step, values, leaf_norms)
    tokens = values.pop('tokens')
    self._clock.step(tokens)
    rate, left = self._clock.shown_rate(), self._clock.seconds_left(self.total - step)
    if np.isfinite(rate):  # not before there is something to say
      terminal.step(step, self.total, values['loss'], rate, left)
    if step % self.config.logging.every_steps == 0 or step == self.total:
      extra = {
        'learning_rate': float(self.experiment.schedule(updates)),
        'tokens_per_second': self._clock.take_rate(),
        'packing': tokens / self.experiment.train_data.num_positions,
      }
      self._writers.write(step, 'train', values | extra)

  # Evaluation

  def evaluate(self, state: TrainState) -> None:
    """Evaluates on every validation set; gives up, without a trace, when asked to stop."""
    self._drain()
    self._clock.pause()
    with self._rescued(state):
      self.validation.run(self._step, state)

  # Checkpoints

  def save_is_due(self, step: int) -> bool:
    """At the intervals, at the end, and after an evaluation that is the best so far."""
    intervals = self.config.checkpoint.every_steps, self.config.checkpoint.keep_every_steps
    due = not self.goes_on(step) or any(n and step % n == 0 for n in intervals)
    return due or self._checkpoints.is_best(self.validation.metrics_at(step))

  def save(self, state: TrainState) -> None:
    """Starts a save of a state whose steps are known to be good, unless this step has one.

    What holds up training is measured from where the devices have nothing left to do.
    """
    with self._saving:
      if self._checkpoints.saved(self._step):
        return
      number = self._step + self._judge.detours.data_offset
      next_batch = begin.data_hash(self.experiment, number)
      self._drain()
      self._writers.flush()
      since = time.monotonic()
      if self._prepared is not None:
        self._prepared.result()
      detours = dataclasses.asdict(self._judge.detours)
      meta = self._meta | {'next_batch': next_batch, 'detours': detours}
      self._checkpoints.save(self._step, state, meta, self.validation.metrics_at(self._step))
      self._clock.pause()
      if self.goes_on(self._step) and self._interrupts.signum is None:
        held = time.monotonic() - since
        terminal.say(f'checkpoint {self._step}: held up training for {held:.2f} s')

  # The end

  def stop(self, state: TrainState) -> None:
    """Saves what is new, and raises Interrupted."""
    self._interrupts.answer()
    self.profile.stop(state)
    signum, where = self.asked_to_stop(), self._nothing_new()
    if self._step > self._first:
      terminal.phase('save', f'step {self._step}')
      self.save(state)
      self._checkpoints.wait()
      where = f' at step {self._step}; the same command goes on'
    terminal.say(f'stopped by {name_of(signum)}{where}')
    raise Interrupted(signum, everywhere=True)

  def finish(self, state: TrainState) -> None:
    """Completes what is in flight after the last step."""
    self.profile.stop(state)
    terminal.phase('save', f'step {self._step}')
    self.save(state)
    self._checkpoints.wait()
    terminal.say(f'done at step {self._step}: {self._workdir}')

  def close(self, error: BaseException | None = None) -> None:
    """Ends what goes on, after the last step or an error."""
    self._interrupts.rescue = None
    try:
      self.profile.stop(None)
      self._writers.close()
    finally:
      # A save needs every process; where one has failed, the others would wait for it in vain.
      if error is None or getattr(error, 'everywhere', False) or distributed.count() == 1:
        self._checkpoints.close()

  # A signal while the main thread compiles an evaluation

  def _nothing_new(self) -> str:
    return f' at step {self._first}: nothing new to save'

  @contextlib.contextmanager
  def _rescued(self, state: TrainState) -> Iterator[None]:
    """While the main thread only reads `state`, another one may save it.

    Alone: of several processes, each would do it at a time of its own.
    """
    if distributed.count() == 1:
      self._interrupts.rescue = functools.partial(self._rescue, state)
    try:
      yield
    finally:
      self._interrupts.rescue = None

  def _rescue(self, state: TrainState) -> str:
    self.save(state)
    self._checkpoints.wait()
    return f' at step {self._step}; the same command goes on'
