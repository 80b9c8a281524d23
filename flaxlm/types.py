"""The types at which everything meets."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray
# Fixed shapes. int32 [B, L]: inputs, positions, segment_ids (packing; 0 = padding), token_type_ids;
# targets [B, T], target_weights f32 [B, T], target_positions [B, T] where only some positions are
# predicted; encoder_* and decoder_* for encoder-decoders.
Batch = Mapping[str, Array]
# In the extras of a TrainState: the moving average of the parameters that train, what a trunk
# remembers of the rows of the step before, and what the guard of the steps knows of them.
EMA, MEMORY, GUARD = 'ema', 'memory', 'guard'
# In the parameters, beside 'trunk' and 'head': the factors of LoRA.
DELTA = 'delta'


@flax.struct.dataclass
class Mean:
  """A total and the weight it is divided by, once, after everything was added."""

  total: Array | float
  weight: Array | float

  def __add__(self, other: 'Mean') -> 'Mean':
    return Mean(self.total + other.total, self.weight + other.weight)

  def value(self) -> float:
    """total / weight on the host; NaN for an empty mean."""
    weight = float(self.weight)
    return float(self.total) / weight if weight else float('nan')


@flax.struct.dataclass
class TrainState:
  """Everything a run needs to go on: `params` is {'trunk', 'head'}; `extras` named pytrees."""

  step: Array
  params: Any
  opt_state: Any
  extras: Mapping[str, Any]


@flax.struct.dataclass
class ModelOutput:
  """What a trunk returns.

  hidden: [B, L, D], of the decoder where there are two stacks; encoder: [B, L, D] or None;
  embedding: the token table [table_size, D] for tied heads; cache: that of each layer, or None.
  """

  hidden: Array
  embedding: Array
  encoder: Array | None = None
  cache: Any = None


@flax.struct.dataclass
class VocabOutput:
  """What vocabulary heads return: logits are hidden @ table.T + bias, and never made in full.

  hidden: [..., D]; table: [table_size, D]; bias: [table_size] or None; rows from `vocab_size` on
  are padding, outside the softmax; softcap: cap c of the logits, c * tanh(x / c), or 0.
  """

  hidden: Array
  table: Array
  bias: Array | None
  vocab_size: int = flax.struct.field(pytree_node=False)
  softcap: float = flax.struct.field(pytree_node=False, default=0.0)
