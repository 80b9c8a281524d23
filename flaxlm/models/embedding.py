"""Token, type and position embeddings, summed: the bottom of every trunk."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers import initializers
from flaxlm.layers.dense import dropout
from flaxlm.layers.norm import Norm
from flaxlm.layers.position import PositionEncoding
from flaxlm.sharding import lookup


class TokenTable(nn.Module):
  """The token embedding [table_size, D]; rows beyond vocab_size are padding."""

  config: TransformerConfig

  @nn.compact
  def __call__(self) -> jax.Array:
    c = self.config
    init = nn.with_logical_partitioning(initializers.table(c), ('vocab', 'embed'))
    return self.param('table', init, (c.table_size, c.emb_dim))


class Embedding(nn.Module):
  """[B, L] token ids -> [B, L, D] in the compute dtype."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    table: jax.Array,
    position: PositionEncoding,
    inputs: jax.Array,
    positions: jax.Array,
    token_type_ids: jax.Array | None,
    deterministic: bool,
  ) -> jax.Array:
    c = self.config
    dtype = jnp.dtype(c.precision)
    x = lookup(table, ('vocab', 'embed'), inputs, dtype)
    if c.scale_embeddings:
      x = x * jnp.sqrt(jnp.asarray(c.emb_dim, x.dtype))
    if c.token_types:
      init = nn.with_logical_partitioning(initializers.table(c), ('table', 'embed'))
      types = self.param('token_types', init, (c.token_types, c.emb_dim))
      if token_type_ids is None:
        x = (x + types[0]).astype(dtype)
      else:
        x = x + lookup(types, ('table', 'embed'), token_type_ids, dtype)
    x = position.embed(x, positions)
    if c.embedding_norm:
      x = Norm(c, name='norm')(x)
    return dropout(self, x, c.embedding_dropout_rate, deterministic)
