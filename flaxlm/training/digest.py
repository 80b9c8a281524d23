"""The digest of a state: what tells a checkpoint that is whole from one with a flipped bit."""

from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp

from flaxlm.paths import leaf_paths


def _mix(x: jax.Array) -> jax.Array:
  """The finalizer of MurmurHash3: a bijection of uint32 under which sums do not cancel."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _leaf_digest(leaf: jax.Array) -> jax.Array:
  """Two sums over the bits of `leaf` and their positions, modulo 2**32: uint32 [2].

  Integer addition has no order, so the sums do not depend on how the leaf is sharded. In the first,
  each value has an odd factor, so no change of a single value goes unnoticed.
  """
  if leaf.dtype == jnp.bool_:
    leaf = leaf.astype(jnp.uint8)
  width = min(leaf.dtype.itemsize, 4) * 8
  bits = jax.lax.bitcast_convert_type(leaf, f'uint{width}').astype(jnp.uint32)
  index = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  first = jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)
  second = jnp.sum(_mix(bits + _mix(index + 1)), dtype=jnp.uint32)
  return jnp.stack([first, second])


@jax.jit
def _digests(leaves: list[jax.Array]) -> jax.Array:
  """`_leaf_digest` of every leaf: uint32 [N, 2].

  One program: the sums of many, in flight at once on simulated devices, can wait for each other.
  """
  return jnp.stack([_leaf_digest(leaf) for leaf in leaves])


def digest(tree: Any) -> dict[str, str]:
  """Path -> 16 hexadecimal digits for every leaf of a tree of arrays, computed where they lie."""
  leaves = leaf_paths(tree)
  sums = jax.device_get(_digests(list(leaves.values())))
  return {path: f'{a:08x}{b:08x}' for path, (a, b) in zip(leaves, sums.tolist(), strict=True)}


def prepare(abstract: Any) -> futures.Future:
  """Compiles the digest of such a tree beside other work, so that the first save need not.

  abstract: ShapeDtypeStructs with shardings. Returns what `result()` waits for.
  """
  leaves = list(leaf_paths(abstract).values())
  pool = futures.ThreadPoolExecutor(1, thread_name_prefix='digest')
  # What is compiled so is found by the call: tracing and compilation are cached by shapes.
  done = pool.submit(lambda: _digests.lower(leaves).compile() and None)
  pool.shutdown(wait=False)
  return done
