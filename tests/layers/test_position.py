"""Position schemes: relative ones depend on differences only; values against independent code."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers import position, relative


def bucket_by_hand(distance, bidirectional, buckets, max_distance):
  """One distance at a time, as the T5 paper's code comments describe it."""
  offset = 0
  if bidirectional:
    buckets //= 2
    if distance > 0:
      offset = buckets
    distance = abs(distance)
  else:
    distance = max(-distance, 0)
  exact = buckets // 2
  if distance < exact:
    return offset + distance
  share = math.log(distance / exact) / math.log(max_distance / exact)
  return offset + min(exact + int(share * (buckets - exact)), buckets - 1)


@pytest.mark.parametrize('bidirectional', [True, False])
def test_t5_buckets(bidirectional):
  distances = np.arange(-300, 301)
  got = position.relative_bucket(jnp.asarray(distances), bidirectional, 32, 128)
  want = [bucket_by_hand(int(d), bidirectional, 32, 128) for d in distances]
  np.testing.assert_array_equal(got, want)


def test_alibi_slopes():
  np.testing.assert_allclose(position.alibi_slopes(8), [2.0**-i for i in range(1, 9)])
  np.testing.assert_allclose(position.alibi_slopes(3), [2.0**-4, 2.0**-8, 2.0**-2])


@pytest.mark.parametrize('scheme', ['t5_bias', 'alibi'])
@pytest.mark.parametrize('bidirectional', [True, False])
def test_bias_depends_on_the_difference_only(scheme, bidirectional):
  config = TransformerConfig(position=scheme, num_heads=3, emb_dim=12, init='t5')
  module = position.scheme(config, bidirectional, None)
  places = jnp.arange(40)
  variables = module.init(jax.random.key(0), places, places, method='bias')
  bias = lambda shift: module.apply(variables, places + shift, places + shift, method='bias')
  np.testing.assert_array_equal(bias(0), bias(1000))
  assert bias(0).shape == (3, 40, 40)
  assert np.ptp(np.asarray(bias(0)), axis=(1, 2)).min() > 0


def test_rope_scores_depend_on_the_difference_only():
  config = TransformerConfig(position='rope', num_heads=2, emb_dim=16)
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 6, 2, 8))
  score = lambda shift: jnp.einsum(
    'bqhk,bshk->bhqs',
    position.rotate(config, q, jnp.arange(6)[None] + shift),
    position.rotate(config, k, jnp.arange(6)[None] + shift),
  )
  np.testing.assert_allclose(score(0), score(50), atol=2e-5)
  assert np.abs(score(0) - jnp.einsum('bqhk,bshk->bhqs', q, k)).max() > 0.1


def test_rope_is_a_rotation_of_complex_pairs():
  config = TransformerConfig(position='rope', num_heads=1, emb_dim=8, rope_theta=100.0)
  x = np.random.default_rng(0).normal(size=(1, 5, 1, 8))
  z = x[..., :4] + 1j * x[..., 4:]
  angles = np.arange(5)[:, None] * 100.0 ** (-np.arange(4) / 4)
  turned = z * np.exp(1j * angles)[None, :, None]
  want = np.concatenate([turned.real, turned.imag], -1)
  got = position.rotate(config, jnp.asarray(x, jnp.float32), jnp.arange(5)[None])
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_sinusoids():
  config = TransformerConfig(position='sinusoidal', emb_dim=8, num_heads=1)
  module = position.scheme(config, True, None)
  got = module.apply({}, jnp.zeros((1, 4, 8)), jnp.arange(4)[None], method='embed')[0]
  angles = np.arange(4)[:, None] / 1e4 ** (np.arange(4) / 4)
  np.testing.assert_allclose(got, np.concatenate([np.sin(angles), np.cos(angles)], -1), atol=1e-6)


def test_llama3_scaling_by_hand():
  """One pair at a time: short wavelengths as they are, long ones divided, and a slope between."""
  config = TransformerConfig(
    position='rope', num_heads=1, emb_dim=64, rope_theta=5e5, rope_scaling='llama3',
    rope_factor=4.0, rope_low_freq_factor=1.5, rope_high_freq_factor=3.0, rope_original_length=100,
  )  # fmt: skip
  got = position.rope_frequencies(config)
  between = 0
  for i in range(32):
    plain = 5e5 ** (-i / 32)
    wavelength = 2 * math.pi / plain
    want = plain if wavelength < 100 / 3 else plain / 4
    if 100 / 3 <= wavelength <= 100 / 1.5:
      share = (100 / wavelength - 1.5) / (3 - 1.5)
      want = share * plain + (1 - share) * plain / 4
      between += 1
    assert math.isclose(got[i], want, rel_tol=1e-12)
  assert between


def test_linear_scaling_divides_positions():
  config = TransformerConfig(position='rope', num_heads=2, emb_dim=16)
  scaled = dataclasses.replace(config, rope_scaling='linear', rope_factor=4.0)
  x = jax.random.normal(jax.random.key(0), (1, 6, 2, 8))
  places = 4 * jnp.arange(6)[None]
  want = position.rotate(config, x, places // 4)
  np.testing.assert_allclose(position.rotate(scaled, x, places), want, atol=1e-5)
  # A local layer with a base of its own is not scaled.
  both = dataclasses.replace(scaled, window=2, local_rope_theta=1e4)
  local = position.rotate(both, x, places, local=True)
  np.testing.assert_array_equal(local, position.rotate(config, x, places))
  np.testing.assert_array_equal(
    position.rotate(both, x, places, local=False), position.rotate(scaled, x, places)
  )


@pytest.mark.full
@pytest.mark.parametrize(
  'scaling',
  [
    {'rope_type': 'linear', 'factor': 3.0},
    {
      'rope_type': 'llama3',
      'factor': 8.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 8192,
    },
    {'rope_type': 'yarn', 'factor': 8.0, 'original_max_position_embeddings': 8192},
    {
      'rope_type': 'yarn',
      'factor': 3.0,
      'original_max_position_embeddings': 1000,
      'beta_fast': 9.0,
      'beta_slow': 2.5,
      'attention_factor': 0.9,
    },
  ],
)
def test_scaling_against_transformers(scaling):
  transformers = pytest.importorskip('transformers')
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

  theirs = transformers.LlamaConfig(
    hidden_size=256, num_attention_heads=2, rope_parameters=scaling | {'rope_theta': 5e5}
  )
  want, factor = ROPE_INIT_FUNCTIONS[scaling['rope_type']](theirs, 'cpu')
  ours = TransformerConfig(
    position='rope',
    num_heads=2,
    emb_dim=256,
    rope_theta=5e5,
    rope_scaling=scaling['rope_type'],
    rope_factor=scaling['factor'],
    rope_original_length=scaling.get('original_max_position_embeddings', 8192),
    rope_beta_fast=scaling.get('beta_fast', 32.0),
    rope_beta_slow=scaling.get('beta_slow', 1.0),
    rope_attention_factor=scaling.get('attention_factor'),
  )
  assert math.isclose(factor, position.rope_attention_factor(ours), rel_tol=1e-9)
  np.testing.assert_allclose(position.rope_frequencies(ours), want, rtol=1e-5)


def test_a_learned_table_may_begin_before_position_0():
  config = TransformerConfig(emb_dim=4, num_heads=1, max_length=3, position_offset=2)
  module = position.scheme(config, True, None)
  table = np.arange(20.0, dtype=np.float32).reshape(5, 4)
  positions = jnp.array([[0, 2, 1]])
  got = module.apply({'params': {'table': table}}, jnp.ones((1, 3, 4)), positions, method='embed')
  np.testing.assert_array_equal(got[0], 1 + table[[2, 4, 3]])


def transformer_xl(queries, keys, size=8, heads=2):
  """(config, module, q [B, Lq, H, K], places of both): queries are the last of the keys."""
  config = TransformerConfig(position='transformer_xl', num_heads=heads, emb_dim=heads * size)
  q = np.random.default_rng(0).normal(size=(3, queries, heads, size)).astype(np.float32)
  return (
    config,
    relative.RelativeScores(config),
    q,
    np.arange(queries),
    np.arange(keys) - (keys - queries),
  )


def apply_relative(config, module, q, q_places, k_places, other=None):
  """(parameters drawn by numpy, q + u, scores)."""
  distances = position.scheme(config, True, None).distances(q_places, k_places)
  distances = distances.replace(other_segment=other)
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), q, len(k_places), distances))[
    'params'
  ]
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), nn.unbox(shapes)
  )
  return params, *module.apply({'params': params}, q, len(k_places), distances)


@pytest.mark.parametrize('queries, keys', [(5, 5), (1, 4), (3, 7), (1, 1)])
def test_transformer_xl_scores_by_hand(queries, keys):
  """One query, key and head at a time, in float64, after Dai et al. 2019, section 3.3."""
  config, module, q, q_places, k_places = transformer_xl(queries, keys)
  other = np.random.default_rng(2).random((3, 1, queries, keys)) < 0.5
  params, with_u, got = apply_relative(config, module, q, q_places, k_places, other)
  size, width = config.head_size, config.emb_dim
  for b, i, j, h in np.ndindex(3, queries, keys, config.num_heads):
    distance = float(q_places[i] - k_places[j])
    angles = [distance / 10000 ** (2 * n / width) for n in range(width // 2)]
    r = np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
    r = np.einsum('d,dk->k', r, params['key']['kernel'][:, h].astype(float))
    want = (q[b, i, h] + params['position_bias'][h]) @ r
    segment = params['segments'][int(other[b, 0, i, j]), h]
    want += (q[b, i, h] + params['segment_bias'][h]) @ segment
    assert got[b, h, i, j] == pytest.approx(want / math.sqrt(size), rel=1e-4, abs=1e-4)
  np.testing.assert_allclose(with_u, q + params['content_bias'], rtol=1e-6)


def test_transformer_xl_places_one_by_one_are_the_row():
  """Queries whose places are listed get what those have that count up; shifted places, too."""
  config, module, q, q_places, k_places = transformer_xl(4, 9)
  _, _, row = apply_relative(config, module, q, q_places, k_places)
  listed = np.broadcast_to(q_places, (3, 4))
  for shift in (0, 1000):
    _, _, got = apply_relative(config, module, q, listed + shift, k_places + shift)
    np.testing.assert_allclose(got, row, rtol=1e-5, atol=1e-5)
  _, _, shifted = apply_relative(config, module, q, q_places + 77, k_places + 77)
  np.testing.assert_array_equal(shifted, row)
  # Any order, and any of the keys' places.
  order = np.array([[2, 0], [1, 1], [3, 2]])
  picked = np.take_along_axis(q, order[:, :, None, None], 1)
  _, _, got = apply_relative(config, module, picked, q_places[order], k_places)
  want = np.take_along_axis(np.asarray(row), order[:, None, :, None], 2)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
