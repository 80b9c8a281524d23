"""One transformer layer; every family but XLNet is a config of it."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers.adapter import Adapter
from flaxlm.layers.attention import Attention, Cache
from flaxlm.layers.dense import dropout
from flaxlm.layers.fused import Pattern
from flaxlm.layers.mlp import MLP
from flaxlm.layers.norm import Norm
from flaxlm.layers.position import Distances


@flax.struct.dataclass
class Context:
  """What every layer of a stack sees besides the residual stream.

  mask: bool [B or 1, 1, Lq, Lk]; local_mask: that of local layers, or None; bias: float32
  [B or 1, H, Lq, Lk] or None; distances: those that scores depend on, or None; positions: [B, Lq];
  pattern: what `mask` says to fused kernels, or None where there are none for it;
  memory_mask: [B, 1, Lq, Lm] where there is an encoder; memory: its output [B, Lm, D], or None
  where the cache has what the layers made of it.
  """

  mask: jax.Array
  bias: jax.Array | None
  positions: jax.Array
  pattern: Pattern | None = None
  distances: Distances | None = None
  local_mask: jax.Array | None = None
  memory: jax.Array | None = None
  memory_mask: jax.Array | None = None


class Block(nn.Module):
  """Self-attention, attention to `context.memory` where there is one, MLP.

  local: attends within the config's window; bare: has no norm before its self-attention.
  """

  config: TransformerConfig
  local: bool = False
  bare: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, context: Context, depth: jax.Array, deterministic: bool, cache: Any
  ) -> tuple[jax.Array, Any]:
    """x: [B, L, D]; depth: 1 / number of layers for the first layer ... 1 for the last.

    cache: a Cache, or whatever `_self_attention` keeps; or None.
    """
    c = self.config

    def sublayer(name: str, x: jax.Array, function) -> tuple[jax.Array, Any]:
      bare = self.bare and name == 'attention'
      norm = (lambda x: x) if bare else Norm(c, name=f'{name}_norm')
      y, result = function(norm(x) if c.norm_placement == 'pre' else x)
      y = dropout(self, y, c.dropout_rate, deterministic)
      if name in c.adapted:
        y = Adapter(c, name=f'{name}_adapter')(y)
      y = self._drop_path(y, depth, deterministic)
      return (x + y if c.norm_placement == 'pre' else norm(x + y)), result

    x, own = sublayer(
      'attention', x, lambda y: self._self_attention(y, context, deterministic, cache)
    )
    memory, known = None, cache.memory if isinstance(cache, Cache) else None
    if context.memory_mask is not None:
      x, memory = sublayer(
        'cross_attention',
        x,
        lambda y: Attention(c, name='cross_attention')(
          y,
          mask=context.memory_mask,
          bias=None,
          positions=None,
          deterministic=deterministic,
          memory=context.memory if known is None else known,
        ),
      )
    x, _ = sublayer('mlp', x, lambda y: (MLP(c, name='mlp')(y, deterministic), None))
    return x, Cache(own, memory) if isinstance(cache, Cache) else own

  def _self_attention(
    self, y: jax.Array, context: Context, deterministic: bool, cache: Any, **source: jax.Array
  ) -> tuple[jax.Array, Any]:
    """y: [B, L, D], normalised if norms come first -> ([B, L, D], the new cache).

    source: `memory` and `key_positions` of Attention, if keys are made of something else.
    """
    y, read = Attention(self.config, self.local, name='attention')(
      y,
      mask=context.local_mask if self.local else context.mask,
      bias=context.bias,
      distances=context.distances,
      positions=context.positions,
      deterministic=deterministic,
      cache=cache and cache.own,
      pattern=context.pattern,
      **source,
    )
    return y, cache and read

  def _drop_path(self, y: jax.Array, depth: jax.Array, deterministic: bool) -> jax.Array:
    """Stochastic depth (Huang et al. 2016): skips a row's sublayer, more often in later layers."""
    if deterministic or self.config.layer_drop_rate == 0.0:
      return y
    keep = 1.0 - self.config.layer_drop_rate * depth
    kept = jax.random.bernoulli(self.make_rng('dropout'), keep, (y.shape[0], 1, 1))
    return jnp.where(kept, y / keep.astype(y.dtype), jnp.zeros((), y.dtype))
