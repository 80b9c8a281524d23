"""How a model is tuned: which parameters train, from which layer on, and at what rate."""

import dataclasses

from flaxlm.config.field import field
from flaxlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class TuningConfig:
  """Patterns are regular expressions over parameter paths, which name single layers of a stack."""

  trainable: tuple[str, ...] = field((), 'leaves that train; the others are frozen. All if unset')
  frozen: tuple[str, ...] = field(
    (), 'leaves that do not train, whatever `trainable` says: no gradient, no optimizer state'
  )
  layer_decay: float = field(
    1.0,
    'factor of the learning rate from each layer to the one below it, from the head down to the '
    'embeddings; 1: the same rate for all',
    above=0.0,
    high=1.0,
  )
  unfreeze_steps: int = field(
    0,
    'gradual unfreezing: the head trains from the start, the last layer after so many steps, the '
    'one below it after as many more, and so on; 0: all from the start',
    low=0,
  )
  unfreeze_epochs: float = field(
    0.0, 'as unfreeze_steps, in passes over the training rows; set one of them', low=0.0
  )

  def check(self) -> None:
    """Raises UserError for values that exclude each other."""
    if self.unfreeze_steps and self.unfreeze_epochs:
      raise UserError('unfreeze_steps, config.tuning.unfreeze_epochs: set one of them')
