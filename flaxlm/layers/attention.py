"""Multi-head attention with grouped keys and values, packing masks and a cache."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers import initializers
from flaxlm.layers.dense import Dense, dropout
from flaxlm.layers.norm import Norm
from flaxlm.layers.position import Distances, rotate
from flaxlm.layers.relative import RelativeScores


@flax.struct.dataclass
class Cache:
  """Keys and values [B, S, Hkv, K] of one layer; slot s holds the token at position s."""

  key: jax.Array
  value: jax.Array


class Attention(nn.Module):
  """Self-attention, or attention to `memory`. local: of a layer that attends within a window."""

  config: TransformerConfig
  local: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    mask: jax.Array,
    bias: jax.Array | None,
    positions: jax.Array | None,
    deterministic: bool,
    memory: jax.Array | None = None,
    cache: Cache | None = None,
    distances: Distances | None = None,
    key_positions: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """x: [B, Lq, D]; memory: [B, Lk, D]; positions: [B, Lq] or None where none apply.

    mask: bool, broadcastable to [B, 1, Lq, Lk]; bias: float32, broadcastable to [B, H, Lq, Lk].
    distances: of queries and keys, of a position scheme that has them. key_positions: [B, Lk], if
    they are not those of x.
    With a cache, the keys and values of x are written to the slots `positions` first and the
    queries attend to all slots that the mask allows. Returns ([B, Lq, D], the new cache).
    """
    c = self.config
    source = x if memory is None else memory
    q = self._project('query', c.num_heads, 'heads')(x)
    k = self._project('key', c.kv_heads, 'kv_heads')(source)
    v = self._project('value', c.kv_heads, 'kv_heads')(source)
    if c.qk_norm:
      norm = lambda name: Norm(c, 'rmsnorm', 'head_dim', name=name)
      q, k = norm('query_norm')(q), norm('key_norm')(k)
    if positions is not None:
      q = rotate(c, q, positions, self.local)
      k = rotate(c, k, positions if key_positions is None else key_positions, self.local)
    if cache is not None:
      rows = jnp.arange(x.shape[0])[:, None]
      k = cache.key.at[rows, positions].set(k.astype(cache.key.dtype))
      v = cache.value.at[rows, positions].set(v.astype(cache.value.dtype))
      cache = Cache(k, v)
    if distances is not None:
      q, scores = RelativeScores(c, name='relative')(q, k.shape[1], distances)
      bias = scores if bias is None else bias + scores
    if c.scale_attention:
      q = q * c.head_size**-0.5
    y = self._attend(q, k, v, mask, bias, deterministic)
    init = initializers.kernel(c, c.num_heads * c.head_size, 'residual')
    out = Dense(
      (c.num_heads, c.head_size), (c.emb_dim,), ('heads', 'head_dim'), ('embed',),
      init, c.attention_biases, name='out',
    )  # fmt: skip
    return out(y), cache

  def _project(self, name: str, heads: int, axis: str) -> Dense:
    c = self.config
    init = initializers.kernel(c, c.emb_dim, 'query' if name == 'query' else 'projection')
    return Dense(
      (c.emb_dim,), (heads, c.head_size), ('embed',), (axis, 'head_dim'),
      init, c.attention_biases, name=name,
    )  # fmt: skip

  def _attend(self, q, k, v, mask, bias, deterministic) -> jax.Array:
    """Scaled q [B, Lq, H, K], k and v [B, Lk, Hkv, K] -> [B, Lq, H, K]."""
    batch, length, heads, size = q.shape
    groups = heads // k.shape[2]
    if groups > 1:
      k, v = jnp.repeat(k, groups, 2), jnp.repeat(v, groups, 2)
    scores = jnp.einsum('bqhk,bshk->bhqs', q, k, preferred_element_type=jnp.float32)
    scores = soft_cap(scores, self.config.attention_softcap)
    if bias is not None:
      scores = scores + bias
    probabilities = masked_softmax(scores, mask).astype(v.dtype)
    rate = self.config.attention_dropout_rate
    probabilities = dropout(self, probabilities, rate, deterministic)
    return jnp.einsum('bhqs,bshk->bqhk', probabilities, v)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
  """cap * tanh(x / cap), which keeps x below `cap` in size (Bello et al. 2016, A.1); 0: x."""
  return cap * jnp.tanh(x / cap) if cap else x


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
  """Softmax over the last axis where `mask` is True; a fully masked row gives 0, never NaN."""
  scores = jnp.where(mask, scores, -jnp.inf)
  top = jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True))
  exponentials = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
  return exponentials / jnp.maximum(exponentials.sum(-1, keepdims=True), 1e-30)
