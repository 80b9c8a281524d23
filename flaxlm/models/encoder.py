"""Encoder trunk: every token attends to its whole segment (BERT and its kin)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers import masks
from flaxlm.layers.fused import Pattern
from flaxlm.layers.norm import Norm
from flaxlm.layers.position import PositionEncoding, scheme
from flaxlm.models.block import Context
from flaxlm.models.embedding import Embedding, TokenTable
from flaxlm.models.stack import Stack
from flaxlm.types import Batch, ModelOutput

Config = TransformerConfig
FAMILY = 'encoder'


class Trunk(nn.Module):
  """inputs, positions, segment_ids [B, L] (and token_type_ids) -> hidden [B, L, D]."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, batch: Batch, deterministic: bool = True) -> ModelOutput:
    c = self.config
    table = TokenTable(c, name='token')()
    position = scheme(c, bidirectional=True, name='position')
    x = Embedding(c, name='embedding')(
      table,
      position,
      batch['inputs'],
      batch['positions'],
      batch.get('token_type_ids'),
      deterministic,
    )
    context = self_context(position, batch['positions'], batch['segment_ids'])
    x, _ = Stack(c, c.num_layers, name='stack')(x, context, deterministic)
    if c.norm_placement == 'pre':
      x = Norm(c, name='final_norm')(x)
    return ModelOutput(hidden=x, embedding=table)


def self_context(
  position: PositionEncoding, positions: jax.Array, segment_ids: jax.Array
) -> Context:
  """Mask and bias of self-attention within the segments of a row [B, L]."""
  places = jnp.arange(positions.shape[1])
  mask = masks.segments(segment_ids, segment_ids)
  window = position.config.window
  return Context(
    mask=mask,
    local_mask=None if window is None else mask & masks.near(places, places, window),
    bias=position.bias(places, places),
    distances=position.distances(places, places),
    positions=positions,
    pattern=Pattern(segment_ids, causal=False),
  )
