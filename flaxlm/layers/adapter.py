"""Bottleneck adapters: a small residual MLP behind a sublayer, for tuning it alone."""

import flax.linen as nn
import jax

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers import initializers
from flaxlm.layers.dense import Dense
from flaxlm.layers.mlp import ACTIVATIONS


class Adapter(nn.Module):
  """[B, L, D] -> [B, L, D]: x + up(activation(down(x))) through `adapter_dim` units.

  Houlsby et al. 2019, section 2.1. The last kernel begins at 0, so that the model does not change.
  """

  config: TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = self.config
    wide, narrow = ((c.emb_dim,), ('embed',)), ((c.adapter_dim,), ('rank',))

    def dense(name: str, source, target, init) -> Dense:
      return Dense(source[0], target[0], source[1], target[1], init, True, name=name)

    y = dense('down', wide, narrow, initializers.kernel(c, c.emb_dim))(x)
    return x + dense('up', narrow, wide, nn.initializers.zeros_init())(ACTIVATIONS[c.activation](y))
