"""Trunk and head as one module: init and apply take a batch."""

from typing import Any

import flax.linen as nn

from flaxlm.config.transformer import TransformerConfig
from flaxlm.config.tree import load_module
from flaxlm.types import Batch


class Model(nn.Module):
  """params = {'trunk', 'head'}; every family and objective has this one signature."""

  trunk: nn.Module
  head: nn.Module

  def __call__(self, batch: Batch, deterministic: bool = True, **decoding: Any) -> tuple[Any, Any]:
    """Returns (the head's outputs, ModelOutput). `decoding`: cache, memory."""
    output = self.trunk(batch, deterministic, **decoding)
    return self.head(output, batch, deterministic), output


def make_model(config: TransformerConfig, head: nn.Module) -> Model:
  """The trunk that `config.name` names, under a head."""
  return Model(load_module('flaxlm.models', config.name).Trunk(config), head)
