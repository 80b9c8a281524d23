"""Decoder trunk: every token attends to itself and what precedes it in its segment (GPT)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers import masks
from flaxlm.layers.attention import Cache
from flaxlm.layers.fused import Pattern
from flaxlm.layers.norm import Norm
from flaxlm.layers.position import PositionEncoding, scheme
from flaxlm.models.block import Context
from flaxlm.models.embedding import Embedding, TokenTable
from flaxlm.models.stack import Stack
from flaxlm.types import Batch, ModelOutput

Config = TransformerConfig
FAMILY = 'decoder'


class Trunk(nn.Module):
  """inputs, positions, segment_ids [B, L] -> hidden [B, L, D].

  Where the batch has `prefix` [B, L], tokens that it marks are seen by their whole segment.
  With a cache (one of each layer) the batch holds only new tokens, whose positions say which slots
  they fill; segment_ids are not read then: a row is one sequence.
  """

  config: TransformerConfig

  @nn.compact
  def __call__(
    self, batch: Batch, deterministic: bool = True, cache: Sequence[Cache] | None = None
  ) -> ModelOutput:
    c = self.config
    table = TokenTable(c, name='token')()
    position = scheme(c, bidirectional=False, name='position')
    x = Embedding(c, name='embedding')(
      table, position, batch['inputs'], batch['positions'], None, deterministic
    )
    context = self_context(
      position, batch['positions'], batch.get('segment_ids'), cache, batch.get('prefix')
    )
    x, cache = Stack(c, c.num_layers, name='stack')(x, context, deterministic, cache)
    if c.norm_placement == 'pre':
      x = Norm(c, name='final_norm')(x)
    return ModelOutput(hidden=x, embedding=table, cache=cache)


def self_context(
  position: PositionEncoding,
  positions: jax.Array,
  segment_ids: jax.Array | None,
  cache: Sequence[Cache] | None,
  prefix: jax.Array | None = None,
) -> Context:
  """Mask and bias of causal self-attention over a row [B, L], or over the slots of a cache.

  prefix: marks [B, L] of tokens that their whole segment sees, or None.
  """
  if cache is None:
    queries = keys = jnp.arange(positions.shape[1])
    order = masks.causal(positions.shape[1])
    if prefix is not None:
      order |= masks.prefix(prefix, jnp.broadcast_to(keys, prefix.shape), prefix.shape[1])
    mask = masks.segments(segment_ids, segment_ids) & order
  else:
    slots = cache[0].own.key.shape[2]
    queries, keys = positions, jnp.arange(slots)[None]
    mask = masks.cached(positions, slots)
    if prefix is not None:
      mask |= masks.prefix(prefix, positions, slots)
  window = position.config.window
  plain = cache is not None or prefix is not None
  return Context(
    mask=mask,
    local_mask=None if window is None else mask & masks.near(queries, keys, window),
    bias=position.bias(queries, keys),
    distances=position.distances(queries, keys),
    positions=positions,
    pattern=None if plain else Pattern(segment_ids, causal=True),
  )
