"""Encoder-decoder trunk: the original Transformer, T5, BART. One token table serves both stacks."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers import masks
from flaxlm.layers.attention import Cache
from flaxlm.layers.dense import dropout
from flaxlm.layers.norm import Norm
from flaxlm.layers.position import scheme
from flaxlm.models import decoder, encoder
from flaxlm.models.embedding import Embedding, TokenTable
from flaxlm.models.stack import Stack
from flaxlm.types import Batch, ModelOutput

Config = TransformerConfig
FAMILY = 'encoder_decoder'


class Trunk(nn.Module):
  """encoder_* [B, L] and decoder_* [B, T] (inputs, positions, segment_ids) -> hidden [B, T, D].

  The decoder attends to encoder tokens of its own segment. With a cache (one of each layer),
  decoder_* hold only new tokens. `memory` [B, L, D], the encoder's output of an earlier call,
  replaces encoder_inputs; the cache that a call returns holds what the layers made of it, and
  replaces both.
  """

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    batch: Batch,
    deterministic: bool = True,
    cache: Sequence[Cache] | None = None,
    memory: jax.Array | None = None,
  ) -> ModelOutput:
    table = TokenTable(self.config, name='token')()
    if memory is None and not (cache and cache[0].memory):
      memory = self._encode(table, batch, deterministic)
    x, cache = self._decode(table, batch, memory, deterministic, cache)
    return ModelOutput(hidden=x, embedding=table, encoder=memory, cache=cache)

  def _encode(self, table: jax.Array, batch: Batch, deterministic: bool) -> jax.Array:
    c = self.config
    position = scheme(c, bidirectional=True, name='encoder_position')
    x = Embedding(c, name='encoder_embedding')(
      table,
      position,
      batch['encoder_inputs'],
      batch['encoder_positions'],
      batch.get('encoder_token_type_ids'),
      deterministic,
    )
    context = encoder.self_context(
      position, batch['encoder_positions'], batch['encoder_segment_ids']
    )
    x, _ = Stack(c, c.num_layers, name='encoder')(x, context, deterministic)
    return self._finish('encoder_norm', x, deterministic)

  def _decode(self, table, batch: Batch, memory, deterministic: bool, cache):
    c = self.config
    position = scheme(c, bidirectional=False, name='decoder_position')
    positions = batch['decoder_positions']
    x = Embedding(c, name='decoder_embedding')(
      table, position, batch['decoder_inputs'], positions, None, deterministic
    )
    segment_ids = batch['decoder_segment_ids']
    context = decoder.self_context(position, positions, segment_ids, cache).replace(
      memory=memory, memory_mask=masks.segments(segment_ids, batch['encoder_segment_ids'])
    )
    x, cache = Stack(c, c.decoder_layers, name='decoder')(x, context, deterministic, cache)
    return self._finish('decoder_norm', x, deterministic), cache

  def _finish(self, name: str, x: jax.Array, deterministic: bool) -> jax.Array:
    c = self.config
    if c.norm_placement == 'post':  # The last sublayer ends with its norm, and that is all.
      return x
    return dropout(self, Norm(c, name=name)(x), c.dropout_rate, deterministic)
