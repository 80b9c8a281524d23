"""What stands on a trunk: (ModelOutput, batch) -> outputs. Objectives choose among these."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers import initializers
from flaxlm.layers.dense import Dense, dropout
from flaxlm.layers.mlp import ACTIVATIONS
from flaxlm.layers.norm import Norm
from flaxlm.types import VocabOutput


def gather(hidden: jax.Array, positions: jax.Array) -> jax.Array:
  """hidden [B, L, D] at positions [B, T] -> [B, T, D]."""
  return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)


def transform(config: TransformerConfig, x: jax.Array) -> jax.Array:
  """A dense layer, activation and norm (BERT's MLM head), as `dense` and `norm` of the caller."""
  c = config
  init = initializers.kernel(c, c.emb_dim)
  dense = Dense(
    (c.emb_dim,), (c.emb_dim,), ('embed',), ('embed_out',), init, c.use_bias, name='dense'
  )
  return Norm(c, name='norm')(ACTIVATIONS[c.activation](dense(x)))


class VocabHead(nn.Module):
  """hidden [B, T, D] -> VocabOutput, by the token table or by one of its own.

  transform: `transform` first (BERT's MLM head); bias: of the output.
  """

  config: TransformerConfig
  transform: bool = False
  bias: bool = False

  @nn.compact
  def __call__(self, hidden: jax.Array, embedding: jax.Array) -> VocabOutput:
    c = self.config
    x, bias = hidden, None
    if self.transform:
      x = transform(c, x)
    if self.bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ('vocab',))
      bias = self.param('bias', zeros, (c.table_size,))
    if c.tie_embeddings:
      table = embedding
      if c.scale_tied_logits:
        x = x * c.emb_dim**-0.5
    else:
      init = nn.with_logical_partitioning(initializers.kernel(c, c.emb_dim), ('vocab', 'embed'))
      table = self.param('table', init, (c.table_size, c.emb_dim))
    return VocabOutput(x, table, bias, c.vocab_size, c.logit_softcap)


class ClassHead(nn.Module):
  """pooled [B, T, D] -> float32 logits [B, T, classes].

  pooler: what comes first: 'none'; 'tanh', a dense layer and tanh (BERT); `transform`.
  bias: of the last layer; public decoders (GPT-2, Llama) have none.
  """

  config: TransformerConfig
  classes: int
  pooler: str
  bias: bool = True

  @nn.compact
  def __call__(self, pooled: jax.Array, deterministic: bool) -> jax.Array:
    c = self.config
    x = pooled
    init = initializers.kernel(c, c.emb_dim)
    if self.pooler == 'tanh':
      axes = ('embed',), ('embed_out',)
      x = jnp.tanh(Dense((c.emb_dim,), (c.emb_dim,), *axes, init, True, name='pooler')(x))
    elif self.pooler == 'transform':
      x = transform(c, x)
    x = dropout(self, x, c.dropout_rate, deterministic)
    axes = ('embed',), ('classes',)
    sizes = (c.emb_dim,), (self.classes,)
    return Dense(*sizes, *axes, init, self.bias, jnp.float32, name='out')(x)
