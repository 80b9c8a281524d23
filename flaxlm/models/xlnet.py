"""XLNet trunk: two streams, and a memory of the row before (Yang et al. 2019).

The content stream is an encoder in which a token sees those that stand before it in an order of
factorisation. The query stream, at the places to predict, sees the same but the token itself: it
starts from one trained vector instead of the token. Both share all weights, so that they run as one
sequence, content first, of which only the content gives keys and values.

The released code also applies dropout to the encoded distances, in each row by itself. Here they
have none, so that a layer projects them once for all rows.
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from flaxlm.config.field import field
from flaxlm.config.transformer import TransformerConfig
from flaxlm.errors import UserError
from flaxlm.layers import initializers, masks
from flaxlm.layers.dense import dropout
from flaxlm.layers.norm import Norm
from flaxlm.layers.position import scheme
from flaxlm.models.block import Block, Context
from flaxlm.models.embedding import Embedding, TokenTable
from flaxlm.models.stack import Stack
from flaxlm.types import Batch, ModelOutput

FAMILY = 'encoder'
CLS_LAST = TWO_STREAMS = True


@dataclasses.dataclass(frozen=True)
class Config(TransformerConfig):
  """Of an XLNet."""

  memory_length: int = field(
    0,
    'places of the rows before whose hidden states each layer still attends to, in pretraining; '
    'each row of a batch then goes on where that of the step before ended; 0: none',
    low=0,
  )

  def check(self) -> None:
    super().check()
    if self.memory_length and self.position in ('learned', 'sinusoidal'):
      raise UserError(
        f'memory_length: with position={self.position}, places of the row before would have the '
        'positions of this one; take a relative scheme, or no memory'
      )


@flax.struct.dataclass
class Memory:
  """Hidden states of the last M places of the rows before.

  hidden: [B, N, M, D], of what each layer attended to; is_open: bool [B, M], whether the place is
  of the document with which the row ended.
  """

  hidden: jax.Array
  is_open: jax.Array


class Trunk(nn.Module):
  """inputs, positions, segment_ids [B, L] (and token_type_ids) -> hidden [B, L, D].

  Where the batch has `order` [B, L] there are two streams, and hidden [B, T, D] is that of the
  queries at its target_positions [B, T]. `order` numbers the tokens to predict of a segment from 1,
  in the order of factorisation; 0 has the others, which all see.

  cache: a Memory. It is seen by the tokens that `continues` [B, L] marks: those of a document that
  began in a row before.
  """

  config: Config

  def empty_memory(self, rows: int) -> Memory:
    """The memory before the first row."""
    c = self.config
    shape = rows, c.num_layers, c.memory_length
    return Memory(
      jnp.zeros((*shape, c.emb_dim), jnp.dtype(c.precision)),
      jnp.zeros((rows, c.memory_length), bool),
    )

  @nn.compact
  def __call__(
    self, batch: Batch, deterministic: bool = True, cache: Memory | None = None
  ) -> ModelOutput:
    c = self.config
    length = batch['inputs'].shape[1]
    table = TokenTable(c, name='token')()
    position = scheme(c, bidirectional=True, name='position')
    relative = c.position == 'transformer_xl'  # Whose token types are relative, too.
    x = Embedding(dataclasses.replace(c, token_types=0) if relative else c, name='embedding')(
      table,
      position,
      batch['inputs'],
      batch['positions'],
      batch.get('token_type_ids'),
      deterministic,
    )
    queries = self._queries(position, batch, deterministic, x.dtype)
    if queries is not None:
      x = jnp.concatenate([x, queries], 1)
    context = self._context(position, batch, cache, relative)
    hidden = None if cache is None else jnp.moveaxis(cache.hidden, 1, 0)
    x, hidden = Stack(c, c.num_layers, TwoStreamBlock, name='stack')(
      x, context, deterministic, hidden
    )
    if queries is not None:
      x = x[:, length:]
    if c.norm_placement == 'pre':
      x = Norm(c, name='final_norm')(x)
    x = dropout(self, x, c.dropout_rate, deterministic)
    if cache is not None:
      cache = Memory(jnp.moveaxis(hidden, 0, 1), _still_open(cache.is_open, batch))
    return ModelOutput(hidden=x, embedding=table, cache=cache)

  def _queries(self, position, batch: Batch, deterministic: bool, dtype) -> jax.Array | None:
    """[B, T, D]: the query stream before the first layer, or None without one."""
    c = self.config
    init = nn.with_logical_partitioning(initializers.table(c), ('vector',))
    vector = self.param('query', init, (c.emb_dim,)).astype(dtype)
    if 'order' not in batch:
      return None
    places = batch['target_positions']
    x = jnp.broadcast_to(vector, (*places.shape, c.emb_dim))
    x = position.embed(x, jnp.take_along_axis(batch['positions'], places, 1))
    return dropout(self, x, c.embedding_dropout_rate, deterministic)

  def _context(self, position, batch: Batch, memory: Memory | None, relative: bool) -> Context:
    """Of the queries of both streams; keys are the memory and the content."""
    c = self.config
    length = batch['inputs'].shape[1]
    remembered = 0 if memory is None else c.memory_length
    keys, queries = jnp.arange(-remembered, length), jnp.arange(length)
    mask = masks.segments(_of_queries(batch['segment_ids'], batch), batch['segment_ids'])
    if 'order' in batch:
      queries = _of_queries(jnp.broadcast_to(queries, batch['inputs'].shape), batch)
      # A token sees itself; the query in its place does not.
      reach = _of_queries(batch['order'], batch)
      reach -= jnp.arange(reach.shape[1]) >= length
      mask &= (batch['order'][:, None, :] <= reach[:, :, None])[:, None]
    if memory is not None:
      continues = _of_queries(batch['continues'], batch) != 0
      seen = continues[:, None, :, None] & memory.is_open[:, None, None, :]
      mask = jnp.concatenate([seen, mask], -1)
    distances = position.distances(queries, keys)
    if relative and c.token_types:
      types = batch.get('token_type_ids', jnp.zeros_like(batch['inputs']))
      before = jnp.zeros((len(types), remembered), types.dtype)  # As the released code has it.
      key_types = jnp.concatenate([before, types], 1)
      other = _of_queries(types, batch)[:, :, None] != key_types[:, None, :]
      distances = distances.replace(other_segment=other[:, None])
    return Context(
      mask=mask,
      local_mask=None if c.window is None else mask & masks.near(queries, keys, c.window),
      bias=position.bias(queries, keys),
      distances=distances,
      positions=_of_queries(batch['positions'], batch),
    )


class TwoStreamBlock(Block):
  """Keys and values are those of the content, and of the memory before it."""

  def _self_attention(self, y, context, deterministic, cache):
    """y: [B, L or L + T, D], content first; cache: memory [B, M, D] or None."""
    remembered = 0 if cache is None else cache.shape[1]
    length = context.mask.shape[-1] - remembered
    source, positions = y[:, :length], context.positions[:, :length]
    if cache is not None:
      source = jnp.concatenate([cache, source], 1)
      before = jnp.broadcast_to(jnp.arange(-remembered, 0), (len(y), remembered))
      positions = jnp.concatenate([before, positions], 1)
      cache = jax.lax.stop_gradient(source[:, -remembered:])
    y, _ = super()._self_attention(
      y, context, deterministic, None, memory=source, key_positions=positions
    )
    return y, cache


def _of_queries(values: jax.Array, batch: Batch) -> jax.Array:
  """[B, L] -> the same, and where there are two streams those of the targets: [B, L + T]."""
  if 'order' not in batch:
    return values
  return jnp.concatenate([values, jnp.take_along_axis(values, batch['target_positions'], 1)], 1)


def _still_open(is_open: jax.Array, batch: Batch) -> jax.Array:
  """bool [B, M] of the memory after a row, whose last segment may go on."""
  segments = batch['segment_ids']
  here = (segments == segments.max(-1, keepdims=True)) & (segments != 0)
  before = is_open & (here & (batch['continues'] != 0)).any(-1, keepdims=True)
  return jnp.concatenate([before, here], 1)[:, -is_open.shape[1] :]
