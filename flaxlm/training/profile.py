"""The profiler's trace of a few steps, `config.profile.steps`."""

from typing import Any

import jax
from etils import epath

from flaxlm import files, terminal
from flaxlm.config.schema import ProfileConfig
from flaxlm.errors import UserError


class Profile:
  """Starts and ends the trace; does nothing where none is asked for."""

  def __init__(self, config: ProfileConfig, workdir: epath.Path, step: int, total_steps: int):
    """step: after which the run begins. Raises UserError if it ends before the trace."""
    self._steps, self._directory = config.steps, workdir / 'profile'
    self._tracing: files.LocalFolder | None = None
    if self._steps and self._steps[0] > total_steps:
      raise UserError(
        f'config.profile.steps: the run ends before step {self._steps[0]}, after {total_steps} '
        'steps'
      )
    if self._steps and step >= self._steps[1] and not self._directory.exists():
      terminal.warn(
        f'config.profile.steps: the run goes on from step {step}, so that there will be no trace '
        f'of steps {self._steps[0]} to {self._steps[1]}'
      )

  def before_step(self, step: int, state: Any) -> None:
    """Starts or ends the trace; `step` is the one that comes next."""
    if not self._steps:
      return
    first, last = self._steps
    if first <= step <= last and self._tracing is None:  # A resume may begin between them.
      jax.block_until_ready(state)
      self._tracing = files.LocalFolder(self._directory)
      jax.profiler.start_trace(self._tracing.path)
    elif step == last + 1:
      self.stop(state)

  def stop(self, state: Any) -> None:
    """Ends the trace, if one is being taken."""
    if self._tracing is not None:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      self._tracing.publish()
      self._tracing = None
      terminal.say(f'profile of steps {self._steps} in {self._directory}')
