"""How a model is tuned: which parameters train, from which layer on, and at what rate."""

import dataclasses

from flaxlm.config.field import SET, field
from flaxlm.errors import UserError

LORA = {'lora_rank': (SET,)}


@dataclasses.dataclass(frozen=True)
class TuningConfig:
  """Patterns are regular expressions over parameter paths, which name single layers of a stack."""

  trainable: tuple[str, ...] = field(
    (),
    'leaves that train; the others are frozen. If unset, all; with LoRA the head. What LoRA adds '
    'trains in any case',
  )
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

  lora_rank: int = field(
    0, 'rank of what is added to the kernels of lora_targets; 0: no LoRA', low=0
  )
  lora_alpha: float = field(
    16.0, 'what LoRA adds is multiplied by lora_alpha / lora_rank', above=0.0, when=LORA
  )
  lora_targets: tuple[str, ...] = field(
    ('attention/(query|value)/kernel$',), 'kernels that LoRA adds to', when=LORA
  )

  r_drop: float = field(
    0.0,
    'R-Drop: weight of the divergence between two passes with different dropout; 0: one pass',
    low=0.0,
  )

  def check(self) -> None:
    """Raises UserError for values that exclude each other."""
    if self.unfreeze_steps and self.unfreeze_epochs:
      raise UserError('unfreeze_steps, config.tuning.unfreeze_epochs: set one of them')
