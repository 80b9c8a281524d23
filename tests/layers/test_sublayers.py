"""Norms, activations and dropout against numpy and scipy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers.dense import Dense, dropout
from flaxlm.layers.mlp import ACTIVATIONS
from flaxlm.layers.norm import Norm

X = np.random.default_rng(0).normal(2.0, 3.0, size=(4, 6)).astype(np.float32)


@pytest.mark.parametrize('kind', ['layernorm', 'rmsnorm'])
def test_norm(kind):
  module = Norm(TransformerConfig(norm=kind, norm_eps=1e-3))
  variables = nn.unbox(module.init(jax.random.key(0), X))
  x = X.astype(np.float64)
  centred = x - x.mean(-1, keepdims=True) if kind == 'layernorm' else x
  want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3)
  np.testing.assert_allclose(module.apply(variables, X), want, rtol=1e-5, atol=1e-6)
  assert ('bias' in variables['params']) == (kind == 'layernorm')


WANT = {
  'gelu': lambda x: x * scipy.special.ndtr(x),
  'gelu_tanh': lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
  'relu': lambda x: np.maximum(x, 0),
  'silu': lambda x: x * scipy.special.expit(x),
}


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_activations_and_their_derivatives(name):
  x = np.linspace(-5, 5, 101) + 1e-3
  f = ACTIVATIONS[name]
  np.testing.assert_allclose(f(jnp.asarray(x, jnp.float32)), WANT[name](x), rtol=1e-4, atol=1e-6)
  slope = (WANT[name](x + 1e-6) - WANT[name](x - 1e-6)) / 2e-6
  got = jax.vmap(jax.grad(f))(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(got, slope, rtol=1e-3, atol=1e-4)


def test_dropout_keeps_the_mean_and_the_rate():
  class Drop(nn.Module):
    @nn.compact
    def __call__(self, x):
      return dropout(self, x, 0.25, False)

  y = Drop().apply({}, jnp.ones((100, 1000)), rngs={'dropout': jax.random.key(0)})
  assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
  # 1e5 draws: five standard deviations of the mean are 0.009.
  assert abs(y.mean() - 1.0) < 0.01


def dense(dtype=None):
  return Dense((6,), (3,), ('embed',), ('classes',), nn.initializers.normal(1.0), True, dtype)


def test_a_bias_sums_its_gradient_in_float32():
  """Over many rows, bfloat16 would lose what it adds."""
  rng = np.random.default_rng(0)
  x, pull = (jnp.asarray(rng.normal(size=(8192, n)), jnp.bfloat16) for n in (6, 3))
  params = nn.unbox(dense().init(jax.random.key(0), x))
  loss = lambda params: jnp.sum((dense().apply(params, x) * pull).astype(jnp.float32))
  found = jax.jit(jax.grad(loss))(params)['params']['bias']
  np.testing.assert_allclose(found, np.asarray(pull, np.float64).sum(0), rtol=1e-4)


def test_an_output_may_be_finer_than_the_input():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(50, 6)), jnp.bfloat16)
  params = nn.unbox(dense().init(jax.random.key(0), x))
  kernel = np.asarray(params['params']['kernel'].astype(jnp.bfloat16), np.float64)
  found = dense(jnp.float32).apply(params, x)
  assert found.dtype == jnp.float32 and dense().apply(params, x).dtype == jnp.bfloat16
  np.testing.assert_allclose(found, np.asarray(x, np.float64) @ kernel, rtol=1e-5, atol=1e-6)
