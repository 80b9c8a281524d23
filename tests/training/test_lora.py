"""LoRA: the merged kernel is the one with the product of the factors, which alone train."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flaxlm.config.tuning import TuningConfig
from flaxlm.errors import UserError
from flaxlm.paths import leaf_paths, nested
from flaxlm.training import lora

KERNELS = {
  'trunk/stack/layers/attention/query/kernel': ((3, 8, 2, 4), ('layers', 'embed', 'heads', 'k')),
  'trunk/stack/layers/attention/out/kernel': ((3, 2, 4, 8), ('layers', 'heads', 'k', 'embed')),
  'trunk/stack/layers/mlp/down/kernel': ((3, 16, 8), ('layers', 'mlp', 'embed')),
  'head/dense/kernel': ((8, 5), ('embed', 'classes')),
}
OTHERS = {'trunk/token/table': ((9, 8), ('vocab', 'embed'))}


def boxed():
  rng = np.random.default_rng(0)
  make = lambda shape, axes: nn.Partitioned(jnp.asarray(rng.normal(size=shape), jnp.float32), axes)
  return nested({path: make(*spec) for path, spec in {**KERNELS, **OTHERS}.items()})


def with_factors(*targets, **fields):
  """(config, parameters with factors, none of which is 0)."""
  config = TuningConfig(lora_rank=2, lora_targets=targets, **fields)
  params = nn.unbox(lora.add_deltas(config, boxed(), jax.random.key(0)))
  rng = np.random.default_rng(1)
  params['delta'] = jax.tree.map(lambda x: x + rng.normal(size=x.shape), params['delta'])
  return config, params


def test_the_merged_kernel_is_the_sum_written_out():
  config, params = with_factors(
    'layers/[02]/attention/', 'mlp/down', 'head/dense', lora_alpha=3.0
  )  # fmt: skip
  before, after = leaf_paths(params), leaf_paths(lora.merge(config, params))
  assert set(after) == {*KERNELS, *OTHERS}
  stack = params['delta']['trunk']['stack']
  assert set(stack) == {'layers', 'layers_from_0', 'layers_from_2'}

  def added(path, layer):
    return np.asarray(after[path], float)[layer] - np.asarray(before[path], float)[layer]

  for name, equation in (('query', 'dr,rhk->dhk'), ('out', 'hkr,rd->hkd')):
    path = f'trunk/stack/layers/attention/{name}/kernel'
    for layer, run in ((0, 'layers_from_0'), (2, 'layers_from_2')):
      factors = stack[run]['attention'][name]['kernel']
      expected = 1.5 * np.einsum(equation, factors['a'][0], factors['b'][0])
      np.testing.assert_allclose(added(path, layer), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(after[path][1], before[path][1])
  factors = stack['layers']['mlp']['down']['kernel']
  for layer in range(3):
    expected = 1.5 * np.asarray(factors['a'][layer] @ factors['b'][layer])
    found = added('trunk/stack/layers/mlp/down/kernel', layer)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert np.abs(after['head/dense/kernel'] - before['head/dense/kernel']).max() > 0.1
  np.testing.assert_array_equal(after['trunk/token/table'], before['trunk/token/table'])


def test_gradients_of_the_factors_are_those_of_a_second_branch():
  config, params = with_factors('head/dense', lora_alpha=3.0)
  x, y = np.random.default_rng(2).normal(size=(2, 7, 8)), 1.0

  def merged(delta):
    kernel = lora.merge(config, {**params, 'delta': delta})['head']['dense']['kernel']
    return jnp.sum(jnp.tanh(x @ kernel - y))

  def branch(delta):
    factors = delta['head']['dense']['kernel']
    kernel = params['head']['dense']['kernel']
    return jnp.sum(jnp.tanh(x @ kernel + 1.5 * (x @ factors['a']) @ factors['b'] - y))

  found, expected = jax.grad(merged)(params['delta']), jax.grad(branch)(params['delta'])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected)


@pytest.mark.parametrize('target', ['token/table', 'atention/query'])
def test_targets_are_kernels(target):
  message = f"config.tuning.lora_targets: '{target}' matches no leaf .valid: head/dense/kernel"
  with pytest.raises(UserError, match=message):
    with_factors(target)


# --------------------------------------------------------------------------- in a run

LORA = (('tuning.lora_rank', '2'), ('tuning.lora_targets', 'attention/(query|out),layers/1/mlp/up'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('lora'))


@pytest.fixture(scope='module')
def tuned(folder):
  """(experiment, parameters before, parameters after a step), on the host."""
  experiment = tiny.experiment('classify.py:encoder', folder, (*LORA, ('num_microbatches', '2')))
  state = experiment.init_state()
  before = jax.device_get(state.params)
  batch = experiment.put(experiment.train_data.batch(0))
  state, _ = experiment.train_step(state, batch)
  return experiment, before, jax.device_get(state.params)


def test_the_start_is_the_model_without(tuned, folder):
  experiment, before, _ = tuned
  plain = tiny.experiment('classify.py:encoder', folder).init_state().params
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(experiment.weights(before)), plain)


def test_only_factors_and_head_train(tuned):
  experiment, before, after = tuned
  before, after = leaf_paths(before), leaf_paths(after)
  for path in before:
    moved = (before[path] != after[path]).any()
    assert moved == path.startswith(('head/', 'delta/')), path
  shapes = {path: leaf.shape for path, leaf in after.items() if path.startswith('delta/')}
  assert shapes['delta/trunk/stack/layers/attention/out/kernel/a'] == (2, 2, 8, 2)
  assert shapes['delta/trunk/stack/layers_from_1/mlp/up/kernel/b'] == (1, 2, 64)
  trained = leaf_paths(jax.eval_shape(experiment.partition.take, experiment.abstract_state.params))
  assert set(trained) == {p for p in after if p.startswith(('delta/', 'head/'))}
