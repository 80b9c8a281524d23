"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.config.transformer import TransformerConfig


class Norm(nn.Module):
  """Normalises the last axis, of logical name `axis`, in float32; returns its input's dtype.

  kind: 'layernorm' or 'rmsnorm'; that of the config if None.
  """

  config: TransformerConfig
  kind: str | None = None
  axis: str = 'vector'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size = (x.shape[-1],)
    kind = self.kind or self.config.norm
    y = x.astype(jnp.float32)
    if kind == 'layernorm':
      y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.config.norm_eps)
    ones = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis,))
    y = y * self.param('scale', ones, size)
    if kind == 'layernorm' and self.config.use_bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), (self.axis,))
      y = y + self.param('bias', zeros, size)
    return y.astype(x.dtype)
