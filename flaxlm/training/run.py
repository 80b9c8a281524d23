"""What goes on beside the steps: their metrics, evaluation, checkpoints, and the end."""

from collections import deque
from typing import Any

import jax
import numpy as np
from etils import epath

from flaxlm import distributed, terminal
from flaxlm.config import tree
from flaxlm.errors import UserError
from flaxlm.training import begin, checkpoint, writers
from flaxlm.training.agreement import Vote
from flaxlm.training.clock import Clock
from flaxlm.training.interrupt import Interrupted, Interrupts, name_of
from flaxlm.training.paths import leaf_paths
from flaxlm.training.profile import Profile
from flaxlm.training.validation import Validation
from flaxlm.types import Mean, TrainState

# Steps in flight. Their metrics are read this late, so that the device never waits for the host.
_LAG = 2


class NonFinite(UserError):
  """A loss or gradient that is NaN or infinite. Training cannot go on from it."""


class Run:
  """A run from `step` on, as the loop sees it. `close` must be called at its end."""

  def __init__(self, experiment: Any, workdir: epath.Path, step: int, interrupts: Interrupts):
    self.experiment, self.config = experiment, experiment.config
    self.total = experiment.total_steps
    self.profile = Profile(self.config.profile, workdir, self.total)
    self._workdir = workdir
    self.asked_to_stop = Vote(experiment.mesh, lambda: interrupts.signum)
    self._step = self._first = step
    self._pending: deque[tuple[int, dict[str, Any]]] = deque()
    self._clock = Clock()
    self._checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', self.config.checkpoint)
    self._writers = writers.Writers(workdir, self.config, step + 1)
    self.validation = Validation(
      experiment, workdir, self._checkpoints, self._writers, self.asked_to_stop
    )
    self._meta = {
      'config': tree.to_dict(self.config),
      'tokenizer': experiment.tokenizer.fingerprint,
      'total_steps': self.total,
    }

  def goes_on(self, step: int) -> bool:
    """Whether there is another step to do."""
    return step < self.total and not self.validation.is_exhausted()

  # Metrics

  def step_done(self, step: int, metrics: dict[str, Any]) -> None:
    """Takes the metrics of a step that was started; reads those of an older one."""
    self._step = step
    self._pending.append((step, metrics))
    if step == self._first + 1:
      self._drain()
      terminal.phase('train', f'{self.total - self._first} steps')
    while len(self._pending) > _LAG:
      self._read(*self._pending.popleft())

  def _drain(self) -> None:
    while self._pending:
      self._read(*self._pending.popleft())

  def _read(self, step: int, metrics: dict[str, Any]) -> None:
    """Checks that a step was finite, shows it, and writes its line if one is due."""
    leaf_norms = metrics['leaf_norms']
    host = jax.device_get({k: v for k, v in metrics.items() if k != 'leaf_norms'})
    values = {k: v.value() if isinstance(v, Mean) else float(v) for k, v in host.items()}
    if not np.isfinite([values['loss'], values['grad_norm']]).all():
      raise self._non_finite(step, values, np.asarray(leaf_norms))
    tokens = values.pop('tokens')
    self._clock.step(tokens)
    rate, left = self._clock.shown_rate(), self._clock.seconds_left(self.total - step)
    if np.isfinite(rate):  # not before there is something to say
      terminal.step(step, self.total, values['loss'], rate, left)
    if step % self.config.logging.every_steps == 0 or step == self.total:
      learning_rate = float(self.experiment.schedule(step - 1))
      extra = {
        'learning_rate': learning_rate,
        'tokens_per_second': self._clock.take_rate(),
        'packing': tokens / self.experiment.train_data.num_positions,
      }
      self._writers.write(step, 'train', values | extra)

  def _non_finite(self, step: int, values: dict[str, float], norms: np.ndarray) -> NonFinite:
    params = self.experiment.abstract_state.params
    paths = list(leaf_paths(jax.eval_shape(self.experiment.partition.take, params)))
    bad = [path for path, norm in zip(paths, norms, strict=True) if not np.isfinite(norm)]
    where = f'; not finite: the gradient of {bad[0]}' if bad else ''
    where += f' and {len(bad) - 1} more of {len(paths)} leaves' if len(bad) > 1 else ''
    return NonFinite(
      f'step {step}: loss {values["loss"]}, gradient norm {values["grad_norm"]}{where}; '
      f'batch: {self.experiment.train_data.describe(step - 1)}; nothing was saved after it'
    )

  # Evaluation

  def evaluate(self, state: TrainState) -> None:
    """Evaluates on every validation set; gives up, without a trace, when asked to stop."""
    self._drain()
    self._clock.pause()
    self.validation.run(self._step, state)

  # Checkpoints

  def save_is_due(self, step: int) -> bool:
    """At the interval, at the end, and after an evaluation that is the best so far."""
    due = not self.goes_on(step) or step % self.config.checkpoint.every_steps == 0
    return due or self._checkpoints.is_best(self.validation.metrics_at(step))

  def save(self, state: TrainState) -> None:
    """Starts a save of a state that is known to be finite, unless this step has one."""
    self._drain()
    if self._checkpoints.saved(self._step):
      return
    self._writers.flush()
    meta = self._meta | {'next_batch': begin.data_hash(self.experiment, self._step)}
    self._checkpoints.save(self._step, state, meta, self.validation.metrics_at(self._step))
    self._clock.pause()

  # The end

  def stop(self, state: TrainState) -> None:
    """Saves and raises Interrupted."""
    self.profile.stop(state)
    terminal.phase('save', f'step {self._step}')
    self.save(state)
    self._checkpoints.wait()
    signum = self.asked_to_stop()
    name = name_of(signum)
    terminal.say(f'stopped by {name} at step {self._step}; the same command goes on')
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
    self._writers.close()
    # A save needs every process; where one has failed, the others would wait for it in vain.
    if error is None or getattr(error, 'everywhere', False) or distributed.count() == 1:
      self._checkpoints.close()
