"""Multi-head attention with grouped keys and values, packing masks and a cache."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers import fused, initializers, remat
from flaxlm.layers.dense import Dense, dropout
from flaxlm.layers.norm import Norm
from flaxlm.layers.position import Distances, rotate
from flaxlm.layers.relative import RelativeScores


@flax.struct.dataclass
class KeyValues:
  """What one attention reads: keys and values [B, Hkv, S, K], as their products want them."""

  key: jax.Array
  value: jax.Array

  @classmethod
  def of(cls, key: jax.Array, value: jax.Array) -> 'KeyValues':
    """Of projections [B, L, Hkv, K]."""
    return cls(jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2))

  def written(self, slots: jax.Array, key: jax.Array, value: jax.Array) -> 'KeyValues':
    """With projections [B, L, Hkv, K] in the slots [B, L]."""
    rows = jnp.arange(slots.shape[0])[:, None]
    put = lambda old, new: old.at[rows, :, slots].set(new.astype(old.dtype))
    return KeyValues(put(self.key, key), put(self.value, value))


@flax.struct.dataclass
class Cache:
  """What decoding keeps of one layer.

  own: of the tokens so far; slot s holds the token at position s. memory: of the encoder's output,
  which never changes; None before the first call, and without an encoder.
  """

  own: KeyValues
  memory: KeyValues | None = None


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
    memory: jax.Array | KeyValues | None = None,
    cache: KeyValues | None = None,
    distances: Distances | None = None,
    key_positions: jax.Array | None = None,
    pattern: fused.Pattern | None = None,
  ) -> tuple[jax.Array, KeyValues]:
    """x: [B, Lq, D]; memory: [B, Lk, D] or what it gave; positions: [B, Lq], None where none apply.

    mask: bool, broadcastable to [B, 1, Lq, Lk]; bias: float32, broadcastable to [B, H, Lq, Lk].
    distances: of queries and keys, of a position scheme that has them. key_positions: [B, Lk], if
    they are not those of x. pattern: what `mask` says, where a fused kernel may read that instead.
    With a cache, the keys and values of x are written to the slots `positions` first and the
    queries attend to all slots that the mask allows. Returns ([B, Lq, D], what they attended to).
    """
    c = self.config
    norm = lambda name, x: Norm(c, 'rmsnorm', 'head_dim', name=name)(x) if c.qk_norm else x
    turn = lambda x, places: x if positions is None else rotate(c, x, places, self.local)
    q = turn(norm('query_norm', self._project('query', c.num_heads, 'heads')(x)), positions)
    q = remat.named(q, remat.QUERY)
    if isinstance(memory, KeyValues):
      read = memory
    else:
      source = x if memory is None else memory
      k = norm('key_norm', self._project('key', c.kv_heads, 'kv_heads')(source))
      k = turn(k, positions if key_positions is None else key_positions)
      v = self._project('value', c.kv_heads, 'kv_heads')(source)
      k, v = remat.named(k, remat.KEY), remat.named(v, remat.VALUE)
      read = KeyValues.of(k, v) if cache is None else cache.written(positions, k, v)
    if distances is not None:
      q, scores = RelativeScores(c, name='relative')(q, read.key.shape[2], distances)
      bias = scores if bias is None else bias + scores
    if c.scale_attention:
      q = q * c.head_size**-0.5
    kernel = 'plain' if pattern is None else fused.chosen(c, deterministic)
    if kernel == 'plain':
      y = remat.named(self._attend(q, read, mask, bias, deterministic), remat.CONTEXT)
    else:
      window = c.window if self.local else None
      y = fused.attend(c, kernel, q, read.key, read.value, pattern, mask, window)
    init = initializers.kernel(c, c.num_heads * c.head_size, 'residual')
    out = Dense(
      (c.num_heads, c.head_size), (c.emb_dim,), ('heads', 'head_dim'), ('embed',),
      init, c.attention_biases, name='out',
    )  # fmt: skip
    return remat.named(out(y), remat.OUT), read

  def _project(self, name: str, heads: int, axis: str) -> Dense:
    c = self.config
    init = initializers.kernel(c, c.emb_dim, 'query' if name == 'query' else 'projection')
    return Dense(
      (c.emb_dim,), (heads, c.head_size), ('embed',), (axis, 'head_dim'),
      init, c.attention_biases, name=name,
    )  # fmt: skip

  def _attend(self, q, read: KeyValues, mask, bias, deterministic) -> jax.Array:
    """Scaled q [B, Lq, H, K] -> [B, Lq, H, K]. Heads that share keys are one product with them."""
    batch, length, heads, size = q.shape
    shared = read.key.shape[1]
    q = q.reshape(batch, length, shared, heads // shared, size)
    scores = jnp.einsum('bqhgk,bhsk->bhgqs', q, read.key, preferred_element_type=jnp.float32)
    scores = soft_cap(scores.reshape(batch, heads, length, -1), self.config.attention_softcap)
    if bias is not None:
      scores = scores + bias
    probabilities = masked_softmax(scores, mask).astype(read.value.dtype)
    rate = self.config.attention_dropout_rate
    probabilities = dropout(self, probabilities, rate, deterministic)
    probabilities = probabilities.reshape(batch, shared, heads // shared, length, -1)
    y = jnp.einsum('bhgqs,bhsk->bqhgk', probabilities, read.value)
    return y.reshape(batch, length, heads, size)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
  """cap * tanh(x / cap), which keeps x below `cap` in size (Bello et al. 2016, A.1); 0: x."""
  return cap * jnp.tanh(x / cap) if cap else x


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
  """Softmax over the last axis where `mask` is True; a fully masked row gives 0, never NaN."""
  scores = jnp.where(mask, scores, -jnp.inf)
  top = jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True))
  exponentials = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
  return exponentials / jnp.maximum(exponentials.sum(-1, keepdims=True), 1e-30)
