"""Position schemes. Each may touch the embeddings, rotate queries and keys, or bias the scores.

none; learned table (BERT, GPT); sinusoidal (Vaswani et al. 2017, 3.5); RoPE (Su et al. 2021,
half-split pairing as in GPT-NeoX and Llama); T5's bucketed bias (Raffel et al. 2020, 2.1); ALiBi
(Press et al. 2022); Transformer-XL (Dai et al. 2019, 3.3). The relative ones depend on the
difference of two places only.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from flaxlm import sharding
from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers import initializers


@flax.struct.dataclass
class Distances:
  """What scores need that depend on the query and on its distance from the key.

  encoding: float32 [N, D] of distances (query place - key place), each one less than that before;
  first: int32 [B, Lq], which of them is that of each query from its first key; None where the
  places of queries count up by one to that of the last key, and the first query's is N - Lk;
  other_segment: bool [B, 1, Lq, Lk], whether the two have other token types, or None.
  """

  encoding: jax.Array
  first: jax.Array | None = None
  other_segment: jax.Array | None = None


class PositionEncoding(nn.Module):
  """Scheme `none`, and the interface of the others."""

  config: TransformerConfig
  bidirectional: bool

  def embed(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    """x: [B, L, D], positions: [B, L] -> [B, L, D]."""
    del positions
    return x

  def bias(self, q_places: jax.Array, k_places: jax.Array) -> jax.Array | None:
    """Places [..., Lq] and [..., Lk] -> float32 [..., H, Lq, Lk] added to the scores, or None."""
    del q_places, k_places
    return None

  def distances(self, q_places: jax.Array, k_places: jax.Array) -> Distances | None:
    """As `bias`, of a scheme whose scores depend on the query (`layers/relative.py`).

    Keys count up by one. So do queries [Lq], to the place of the last key; queries [B, Lq] are at
    any of the keys' places.
    """
    del q_places, k_places
    return None


class Learned(PositionEncoding):
  """One trained vector for each position."""

  @nn.compact
  def embed(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    c = self.config
    init = nn.with_logical_partitioning(initializers.table(c), ('table', 'embed'))
    table = self.param('table', init, (c.position_offset + c.max_length, c.emb_dim))
    places = c.position_offset + positions
    return x + sharding.lookup(table, ('table', 'embed'), places, x.dtype)


class Sinusoidal(PositionEncoding):
  """Sines in the first half of D, cosines in the second."""

  def embed(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    return x + sinusoids(positions, x.shape[-1]).astype(x.dtype)


class T5Bias(PositionEncoding):
  """A trained scalar for each head and bucket of distance, shared by all layers of a stack."""

  @nn.compact
  def bias(self, q_places: jax.Array, k_places: jax.Array) -> jax.Array:
    c = self.config
    init = nn.with_logical_partitioning(initializers.table(c, 'relative'), ('table', 'heads'))
    table = self.param('table', init, (c.relative_buckets, c.num_heads))
    distance = k_places[..., None, :] - q_places[..., :, None]
    bucket = relative_bucket(
      distance, self.bidirectional, c.relative_buckets, c.relative_max_distance
    )
    return jnp.moveaxis(table[bucket], -1, -3)


class ALiBi(PositionEncoding):
  """A penalty linear in the distance, with a fixed slope for each head."""

  def bias(self, q_places: jax.Array, k_places: jax.Array) -> jax.Array:
    distance = jnp.abs(k_places[..., None, :] - q_places[..., :, None])
    slopes = jnp.asarray(alibi_slopes(self.config.num_heads))
    return -slopes[:, None, None] * distance[..., None, :, :]


class TransformerXL(PositionEncoding):
  """Scores of each query against the sinusoids of its distances, projected in each layer."""

  def distances(self, q_places: jax.Array, k_places: jax.Array) -> Distances:
    keys, origin = k_places.shape[-1], k_places[..., :1]
    first = None
    if q_places.ndim == 1:
      number, top = q_places.shape[0] + keys - 1, q_places[-1] - origin
    else:
      number, top = 2 * keys - 1, keys - 1
      first = top - (q_places - origin)
    return Distances(sinusoids(top - jnp.arange(number), self.config.emb_dim), first)


SCHEMES = {
  'none': PositionEncoding,
  'learned': Learned,
  'sinusoidal': Sinusoidal,
  'rope': PositionEncoding,
  't5_bias': T5Bias,
  'alibi': ALiBi,
  'transformer_xl': TransformerXL,
}


def scheme(config: TransformerConfig, bidirectional: bool, name: str) -> PositionEncoding:
  """The module of `config.position`; RoPE has no leaves, `rotate` is all of it."""
  return SCHEMES[config.position](config, bidirectional, name=name)


def sinusoids(positions: jax.Array, size: int) -> jax.Array:
  """float32 [..., size] of any numbers: sines in the first half, cosines in the second."""
  half = size // 2
  angles = positions[..., None] / 1e4 ** (jnp.arange(half) / half)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def rotate(
  config: TransformerConfig, x: jax.Array, positions: jax.Array, local: bool = False
) -> jax.Array:
  """Rotates queries or keys [B, L, H, K] by their positions [B, L]; other schemes: identity.

  local: whether the layer is one of those that attend within a window.
  """
  if config.position != 'rope':
    return x
  frequencies = rope_frequencies(config, local).astype(np.float32)
  angles = positions[..., None, None] * frequencies
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  if (factor := rope_attention_factor(config, local)) != 1.0:
    sin, cos = factor * sin, factor * cos
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def rope_frequencies(config: TransformerConfig, local: bool = False) -> np.ndarray:
  """Radians per position of each pair, float64 [K / 2], as scaled by `rope_scaling`.

  linear: all divided by the factor (Chen et al. 2023, section 2.3). llama3: those whose wavelength
  exceeds the trained length divided, short ones kept, linear in the frequency between (Grattafiori
  et al. 2024, section 3.4.3, and the released code). yarn: likewise, but linear in the number of
  the pair, between whole ones (Peng et al. 2023, section 3.2, and the released code). Local layers
  with a base of their own see no distance that was not trained, and are not scaled (as of Gemma 3).
  """
  half = config.head_size // 2
  own = local and config.local_rope_theta is not None
  frequencies = (config.local_rope_theta if own else config.rope_theta) ** (-np.arange(half) / half)
  if own or config.rope_scaling == 'none':
    return frequencies
  divided = frequencies / config.rope_factor
  if config.rope_scaling == 'linear':
    return divided
  if config.rope_scaling == 'yarn':
    # The pair that makes so many turns in the trained length, as a real number.
    pair = lambda turns: (
      half * math.log(config.rope_original_length / (2 * math.pi * turns), config.rope_theta)
    )
    first = max(math.floor(pair(config.rope_beta_fast)), 0)
    last = min(math.ceil(pair(config.rope_beta_slow)), config.head_size - 1)
    kept = 1.0 - np.clip((np.arange(half) - first) / max(last - first, 1e-3), 0.0, 1.0)
  else:
    turns = config.rope_original_length * frequencies / (2 * math.pi)
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return kept * frequencies + (1 - kept) * divided


def rope_attention_factor(config: TransformerConfig, local: bool = False) -> float:
  """What rotated queries and keys are multiplied by (Peng et al. 2023, equation 22)."""
  own = local and config.local_rope_theta is not None
  if own or config.rope_scaling != 'yarn':
    return 1.0
  if config.rope_attention_factor is not None:
    return config.rope_attention_factor
  return 0.1 * math.log(config.rope_factor) + 1.0


def relative_bucket(
  distance: jax.Array, bidirectional: bool, buckets: int, max_distance: int
) -> jax.Array:
  """Bucket of `key place - query place`: exact when near, logarithmic up to `max_distance`."""
  offset = jnp.zeros_like(distance)
  if bidirectional:
    buckets //= 2
    offset = buckets * (distance > 0)
    distance = jnp.abs(distance)
  else:
    distance = jnp.maximum(-distance, 0)
  exact = buckets // 2
  # Where the buckets after the first of the far ones begin: in whole numbers, so that no logarithm
  # of a device decides on a distance that stands at such a place.
  share = np.arange(1, buckets - exact) / (buckets - exact)
  starts = np.ceil(exact * (max_distance / exact) ** share - 1e-9).astype(np.int32)
  far = exact + jnp.searchsorted(starts, distance, side='right', method='compare_all')
  return offset + jnp.where(distance < exact, distance, far)


def alibi_slopes(num_heads: int) -> list[float]:
  """Geometric slopes; for a head count that is no power of two, those of the powers around it."""
  power = 2 ** math.floor(math.log2(num_heads))
  slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
  between = [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(num_heads - power)]
  return slopes + between
