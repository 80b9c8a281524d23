"""The position-wise feed-forward sublayer, plain or gated (Shazeer 2020)."""

import flax.linen as nn
import jax

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers import initializers
from flaxlm.layers.dense import Dense, dropout

ACTIVATIONS = {
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
}


class MLP(nn.Module):
  """[B, L, D] -> [B, L, D] through `mlp_size` units."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    c = self.config

    def up(name: str) -> Dense:
      init = initializers.kernel(c, c.emb_dim)
      return Dense((c.emb_dim,), (c.mlp_size,), ('embed',), ('mlp',), init, c.use_bias, name=name)

    y = ACTIVATIONS[c.activation](up('up')(x))
    if c.gated_mlp:
      y = y * up('gate')(x)
    y = dropout(self, y, c.dropout_rate, deterministic)
    init = initializers.kernel(c, c.mlp_size, 'residual')
    down = Dense((c.mlp_size,), (c.emb_dim,), ('mlp',), ('embed',), init, c.use_bias, name='down')
    return down(y)
