"""Attention against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers import masks
from flaxlm.layers.attention import Attention, masked_softmax


def reference(params, x, memory, mask, bias, heads, kv_heads, scale, cap=0.0):
  """Softmax attention, one head of one row at a time, in float64."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  project = lambda y, name: np.einsum('bld,dhk->blhk', y, p[name]['kernel']) + p[name]['bias']
  q, k, v = project(x, 'query'), project(memory, 'key'), project(memory, 'value')
  if 'query_norm' in p:
    rms = lambda y: y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
    q, k = rms(q) * p['query_norm']['scale'], rms(k) * p['key_norm']['scale']
  out = np.zeros(q.shape)
  for b in range(q.shape[0]):
    for h in range(heads):
      group = h // (heads // kv_heads)
      scores = q[b, :, h] @ k[b, :, group].T * scale
      scores = cap * np.tanh(scores / cap) if cap else scores
      scores = scores + (0 if bias is None else bias[h])
      for i in range(scores.shape[0]):
        keep = mask[b, 0, i]
        if keep.any():
          weights = np.exp(scores[i][keep] - scores[i][keep].max())
          out[b, i, h] = weights / weights.sum() @ v[b, keep, group]
  return np.einsum('blhk,hkd->bld', out, p['out']['kernel']) + p['out']['bias']


@pytest.mark.parametrize('kv_heads', [4, 2, 1])
@pytest.mark.parametrize('cross', [False, True])
@pytest.mark.parametrize('options', [{}, {'qk_norm': True}, {'attention_softcap': 2.0}])
def test_agrees_with_float64(kv_heads, cross, options):
  config = TransformerConfig(
    num_heads=4, num_kv_heads=kv_heads, emb_dim=24, init_std=0.5, **options
  )  # fmt: skip
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 5, 24)).astype(np.float32)
  memory = rng.normal(size=(2, 7, 24)).astype(np.float32) if cross else None
  mask = rng.random((2, 1, 5, 7 if cross else 5)) < 0.6
  mask[0, 0, 2] = False
  bias = None if cross else rng.normal(size=(4, 5, 5)).astype(np.float32)
  module = Attention(config)
  call = dict(mask=mask, bias=bias, positions=None, deterministic=True, memory=memory)
  params = jax.tree.map(jnp.asarray, module.init(jax.random.key(0), x, **call)['params'])
  params = jax.tree.map(lambda box: box.value, params, is_leaf=lambda leaf: hasattr(leaf, 'value'))
  params = jax.tree.map(lambda a: a + 0.1, params)  # biases that are not 0
  got, _ = module.apply({'params': params}, x, **call)
  source = x if memory is None else memory
  cap = config.attention_softcap
  want = reference(params, x, source, mask, bias, 4, kv_heads, 6**-0.5, cap)
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_fully_masked_row_is_zero_with_finite_gradient():
  mask = jnp.zeros((1, 3), bool)
  scores = jnp.ones((1, 3))
  assert (masked_softmax(scores, mask) == 0).all()
  gradient = jax.grad(lambda s: masked_softmax(s, mask).sum())(scores)
  assert jnp.isfinite(gradient).all()


def test_softmax_survives_large_scores():
  scores = jnp.array([[1e4, 1e4 - 1.0, -1e4]])
  got = masked_softmax(scores, jnp.ones((1, 3), bool))
  want = np.exp([0.0, -1.0]) / np.exp([0.0, -1.0]).sum()
  np.testing.assert_allclose(got[0], [*want, 0.0], rtol=1e-6)


def test_masks_by_hand():
  segment_ids = jnp.array([[1, 1, 2, 0]])
  want = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
  np.testing.assert_array_equal(masks.segments(segment_ids, segment_ids)[0, 0], want)
  np.testing.assert_array_equal(masks.causal(3)[0, 0], np.tril(np.ones((3, 3), bool)))
  cached = masks.cached(jnp.array([[1], [3]]), 4)[:, 0, 0]
  np.testing.assert_array_equal(cached, [[1, 1, 0, 0], [1, 1, 1, 1]])


def test_places_within_a_window():
  near = masks.near(jnp.arange(5), jnp.arange(5), 2)[0]
  np.testing.assert_array_equal(near, np.abs(np.subtract.outer(range(5), range(5))) <= 2)
  cached = masks.near(jnp.array([[1], [3]]), jnp.arange(4)[None], 1)[:, 0, 0]
  np.testing.assert_array_equal(cached, [[1, 1, 1, 0], [0, 0, 1, 1]])
