"""Trunk and head as one module: init and apply take a batch."""

from typing import Any

import flax.linen as nn

from flaxlm.types import Batch


class Model(nn.Module):
  """params = {'trunk', 'head'}; every family and objective has this one signature."""

  trunk: nn.Module
  head: nn.Module

  def __call__(self, batch: Batch, deterministic: bool = True, **decoding: Any) -> tuple[Any, Any]:
    """Returns (the head's outputs, ModelOutput). `decoding`: cache, memory."""
    output = self.trunk(batch, deterministic, **decoding)
    return self.head(output, batch, deterministic), output
