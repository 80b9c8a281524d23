"""Schedules at their corners, AdamW against float64 numpy, and what is decayed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxlm.config.schema import OptimizerConfig
from flaxlm.errors import UserError
from flaxlm.training.optimizer import decay_factors, make_optimizer, make_schedule


def config(**fields):
  return dataclasses.replace(OptimizerConfig(), **fields)


@pytest.mark.parametrize('name', ['constant', 'linear', 'cosine', 'rsqrt'])
def test_warm_up_is_linear_and_reaches_the_peak(name):
  schedule = make_schedule(config(schedule=name, learning_rate=2.0, warmup_steps=4), 20)
  np.testing.assert_allclose([schedule(i) for i in range(4)], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
  assert all(schedule(i) <= 2.0 for i in range(30))


@pytest.mark.parametrize(
  'name,expected',
  [
    ('constant', lambda u: 1.0),
    ('linear', lambda u: 0.25 + 0.75 * (20 - u) / 16),
    ('cosine', lambda u: 0.25 + 0.75 * (1 + np.cos(np.pi * (u - 4) / 16)) / 2),
    ('rsqrt', lambda u: np.sqrt(4 / u)),
  ],
)
def test_shape_after_the_warm_up(name, expected):
  schedule = make_schedule(
    config(schedule=name, learning_rate=1.0, warmup_steps=4, end_ratio=0.25), 20
  )
  counts = np.arange(4, 20)
  np.testing.assert_allclose(schedule(counts), [expected(u + 1) for u in counts], rtol=1e-5)


def test_last_update_has_the_end_ratio_and_later_ones_keep_it():
  for name in ('linear', 'cosine'):
    schedule = make_schedule(config(schedule=name, learning_rate=3.0, end_ratio=0.1), 200)
    np.testing.assert_allclose([schedule(199), schedule(500)], 0.3, rtol=1e-5)


def test_schedule_is_the_same_traced_and_not():
  schedule = make_schedule(config(), 1000)
  counts = jnp.arange(0, 1000, 37)
  np.testing.assert_allclose(jax.jit(schedule)(counts), [schedule(c) for c in counts], rtol=1e-6)


def numpy_adamw(params, gradients, cfg, rates):
  """Loshchilov and Hutter (2019), algorithm 2, with clipping, in float64."""
  mean = {k: np.zeros_like(v) for k, v in params.items()}
  square = {k: np.zeros_like(v) for k, v in params.items()}
  for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
    norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    for k, g in gradient.items():
      g = g * min(1.0, cfg.clip_norm / norm)
      mean[k] = cfg.b1 * mean[k] + (1 - cfg.b1) * g
      square[k] = cfg.b2 * square[k] + (1 - cfg.b2) * g**2
      update = mean[k] / (1 - cfg.b1**t) / (np.sqrt(square[k] / (1 - cfg.b2**t)) + cfg.eps)
      decay = 0.0 if k == 'bias' else cfg.weight_decay
      params[k] = params[k] - rate * (update + decay * params[k])
  return params


def test_adamw_agrees_with_numpy():
  cfg = config(warmup_steps=2, weight_decay=0.3, learning_rate=0.05)
  rng = np.random.default_rng(0)
  params = {'kernel': rng.normal(size=(3, 4)), 'bias': rng.normal(size=4)}
  gradients = [{k: rng.normal(size=v.shape) * 3 for k, v in params.items()} for _ in range(5)]
  optimizer, schedule = make_optimizer(cfg, 5)
  ours = jax.tree.map(jnp.float32, params)
  state = optimizer.init(ours)
  for gradient in gradients:
    updates, state = optimizer.update(jax.tree.map(jnp.float32, gradient), state, ours)
    ours = optax.apply_updates(ours, updates)
  expected = numpy_adamw(params, gradients, cfg, [float(schedule(i)) for i in range(5)])
  for key in expected:
    np.testing.assert_allclose(ours[key], expected[key], rtol=2e-5, atol=1e-6)


def test_sgd_with_momentum_and_without_clipping():
  cfg = config(
    name='sgd', momentum=0.5, clip_norm=0.0, schedule='constant', warmup_steps=0, learning_rate=0.1
  )
  optimizer, _ = make_optimizer(cfg, 3)
  params = {'w': jnp.zeros(2)}
  state = optimizer.init(params)
  for _ in range(3):
    updates, state = optimizer.update({'w': jnp.array([100.0, 1.0])}, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params['w'], [-42.5, -0.425], rtol=1e-6)  # 1 + 1.5 + 1.75


PARAMS = {
  'trunk': {
    'embedding': jnp.ones((5, 4)),
    'layers': {'norm': {'scale': jnp.ones((3, 4))}, 'mlp': {'kernel': jnp.ones((3, 4, 2))}},
  }
}


def test_decay_excludes_leaves_and_single_layers_of_a_stack():
  factors = decay_factors(config(decay_exclude=('scale$', 'layers/1/mlp')), PARAMS)['trunk']
  assert factors['embedding'] is True
  assert factors['layers']['norm']['scale'] is False
  np.testing.assert_array_equal(np.ravel(factors['layers']['mlp']['kernel']), [1, 0, 1])
  cfg = config(decay_exclude=('layers/1/mlp',), weight_decay=0.5, clip_norm=0.0, warmup_steps=0)
  optimizer, schedule = make_optimizer(cfg, 10)
  updates, _ = optimizer.update(
    jax.tree.map(jnp.zeros_like, PARAMS), optimizer.init(PARAMS), PARAMS
  )
  kernel = updates['trunk']['layers']['mlp']['kernel'][:, 0, 0]
  np.testing.assert_allclose(kernel, -schedule(0) * 0.5 * np.array([1, 0, 1]), rtol=1e-6)


def test_a_pattern_that_does_nothing_is_an_error():
  optimizer, _ = make_optimizer(config(decay_exclude=('embeding',)), 10)
  with pytest.raises(UserError, match="decay_exclude: 'embeding' matches no leaf.*embedding"):
    jax.eval_shape(optimizer.init, PARAMS)
  with pytest.raises(UserError, match='not a regular expression'):
    decay_factors(config(decay_exclude=('(',)), PARAMS)
  decay_factors(config(), {'kernel': jnp.ones(3)})  # the default names biases; T5 has none
