"""Which positions may attend to which. True = attend. `segment_ids` alone separate packed items."""

import jax
import jax.numpy as jnp


def segments(q_segment_ids: jax.Array, k_segment_ids: jax.Array) -> jax.Array:
  """[B, Lq], [B, Lk] -> [B, 1, Lq, Lk]: same segment, and not padding (segment 0)."""
  same = q_segment_ids[:, :, None] == k_segment_ids[:, None, :]
  return (same & (k_segment_ids != 0)[:, None, :])[:, None]


def causal(length: int) -> jax.Array:
  """[1, 1, L, L]: keys up to the query's own place in the row."""
  index = jnp.arange(length)
  return (index[:, None] >= index[None, :])[None, None]


def near(q_places: jax.Array, k_places: jax.Array, window: int) -> jax.Array:
  """[..., Lq], [..., Lk] -> [..., 1, Lq, Lk]: places at most `window` apart."""
  distance = q_places[..., :, None] - k_places[..., None, :]
  return (jnp.abs(distance) <= window)[..., None, :, :]


def prefix(marks: jax.Array, positions: jax.Array, slots: int) -> jax.Array:
  """[B, L] marks of tokens at `positions` [B, L] of `slots` places -> [B, 1, 1, slots].

  A key whose mark is not 0 is seen by every query of its segment, also by those before it.
  """
  rows = jnp.arange(marks.shape[0])[:, None]
  found = jnp.zeros((marks.shape[0], slots), bool).at[rows, positions].max(marks != 0)
  return found[:, None, None]


def cached(positions: jax.Array, slots: int) -> jax.Array:
  """[B, Lq] -> [B, 1, Lq, slots]: cache slots up to each query's position."""
  return (jnp.arange(slots) <= positions[:, :, None])[:, None]
