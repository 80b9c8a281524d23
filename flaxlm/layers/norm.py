"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.config.transformer import TransformerConfig


class Norm(nn.Module):
  """Normalises the last axis in float32 and returns the dtype of its input."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size = (x.shape[-1],)
    y = x.astype(jnp.float32)
    if self.config.norm == 'layernorm':
      y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.config.norm_eps)
    ones = nn.with_logical_partitioning(nn.initializers.ones_init(), ('embed',))
    y = y * self.param('scale', ones, size)
    if self.config.norm == 'layernorm' and self.config.use_bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ('embed',))
      y = y + self.param('bias', zeros, size)
    return y.astype(x.dtype)
