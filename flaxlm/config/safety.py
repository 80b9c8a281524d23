"""What keeps a run from being lost: checkpoints, the end after a signal, the guard of the steps."""

import dataclasses

from flaxlm.config.field import SET, field


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save and what to keep."""

  every_steps: int = field(500, 'steps between checkpoints; the last step is always saved', low=1)
  keep_last: int = field(2, 'newest checkpoints to keep', low=1)
  keep_every_steps: int = field(
    0, 'save at multiples of this, too, and keep these for ever; 0: none', low=0
  )
  best_metric: str = field('', 'validation metric whose best checkpoint is kept; the loss if unset')
  best_mode: str = field('auto', 'which is better', choices=('auto', 'min', 'max'))
  grace_seconds: float = field(
    25.0,
    'time from SIGTERM to the end of the process, saved or not; less than what the scheduler gives '
    '(30 s on GKE)',
    above=0.0,
  )


@dataclasses.dataclass(frozen=True)
class GuardConfig:
  """What is done about a step whose loss or gradient is not finite, or jumps."""

  policy: str = field(
    'error',
    '`error`: the run ends; `skip`: the step leaves everything as it was; `rollback`: the run goes '
    'back to its last checkpoint and on with the batch after the bad one',
    choices=('error', 'skip', 'rollback'),
  )
  spike_sigmas: float = field(
    0.0,
    'a loss or gradient norm so many standard deviations above its running mean is bad, too; '
    '0: only what is not finite',
    low=0.0,
  )
  spike_window: int = field(
    128,
    'good steps over which mean and deviation run; the first so many have no spikes',
    low=2,
    when={'spike_sigmas': (SET,)},
  )
  max_skipped: int = field(
    10, 'steps skipped in a row; one more ends the run', low=1, when={'policy': ('skip',)}
  )
  max_rollbacks: int = field(
    3, 'rollbacks of a run; one more ends it', low=1, when={'policy': ('rollback',)}
  )

  @property
  def is_on(self) -> bool:
    """Whether the step has to judge itself."""
    return self.policy != 'error' or self.spike_sigmas > 0
