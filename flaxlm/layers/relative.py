"""Attention scores that depend on the query and on its distance from the key.

Transformer-XL (Dai et al. 2019, section 3.3): (q + u) k + (q + v) r, where r is a projection of the
sinusoids of the distance, and u and v are trained. XLNet (Yang et al. 2019, section 2.5) adds
(q + w) s, where s is one of two trained vectors: query and key are of one segment, or not.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers import initializers
from flaxlm.layers.dense import Dense
from flaxlm.layers.position import Distances


class RelativeScores(nn.Module):
  """Queries [B, Lq, H, K], not scaled -> (q + u, float32 scores [B, H, Lq, Lk], scaled)."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, q: jax.Array, keys: int, distances: Distances) -> tuple[jax.Array, jax.Array]:
    """keys: their number Lk."""
    c = self.config
    init = initializers.kernel(c, c.emb_dim)
    sizes, axes = (c.num_heads, c.head_size), ('heads', 'head_dim')
    project = Dense((c.emb_dim,), sizes, ('embed',), axes, init, use_bias=False, name='key')
    r = project(distances.encoding.astype(q.dtype))
    # Vectors are added in their own precision: their gradients are sums over all rows.
    biased = lambda name: (q + self._vector(name)).astype(q.dtype)
    scores = self._product('bqhk,nhk->bhqn', biased('position_bias'), r)
    scores = _aligned(scores, keys, distances.first)
    if distances.other_segment is not None:
      segments = self._vector('segments', 2).astype(q.dtype)
      products = self._product('bqhk,shk->bhqs', biased('segment_bias'), segments)
      same, other = jnp.split(products, 2, -1)
      scores = scores + jnp.where(distances.other_segment, other, same)
    return biased('content_bias'), scores

  def _vector(self, name: str, *rows: int) -> jax.Array:
    c = self.config
    axes = (*('table' for _ in rows), 'heads', 'head_dim')
    init = nn.with_logical_partitioning(initializers.table(c, 'relative'), axes)
    return self.param(name, init, (*rows, c.num_heads, c.head_size))

  def _product(self, indices: str, q: jax.Array, other: jax.Array) -> jax.Array:
    scores = jnp.einsum(indices, q, other, preferred_element_type=jnp.float32)
    return scores * self.config.head_size**-0.5 if self.config.scale_attention else scores


def _aligned(scores: jax.Array, keys: int, first: jax.Array | None) -> jax.Array:
  """Scores [B, H, Lq, N] of all distances -> [B, H, Lq, keys], of those of each query's keys."""
  if first is not None:
    columns = first[:, None, :, None] + jnp.arange(keys)
    return jnp.take_along_axis(scores, columns, -1, mode='clip')
  # Query i wants N - keys - i and on: in rows that are one shorter, all begin in one column.
  batch, heads, queries, number = scores.shape
  if queries == 1:
    return scores
  flat = scores.reshape(batch, heads, -1)[..., queries - 1 : queries - 1 + queries * (number - 1)]
  return flat.reshape(batch, heads, queries, number - 1)[..., :keys]
