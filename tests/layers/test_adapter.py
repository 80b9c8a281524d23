"""Adapters: nothing changes at the start; where they stand; they train alone."""

import jax
import numpy as np
import pytest
import tiny

from flaxlm.paths import leaf_paths

ADAPTERS = (('model.adapter_dim', '4'),)
PLACES = ('classify.py:encoder', 'classify.py:encoder_decoder')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('adapter'))


def adapters(experiment):
  leaves = leaf_paths(experiment.abstract_state.params)
  return {path: leaf.shape for path, leaf in leaves.items() if 'adapter' in path}


@pytest.mark.parametrize('place', [PLACES[0], pytest.param(PLACES[1], marks=pytest.mark.full)])
def test_the_start_is_the_model_without(place, folder):
  plain, adapted = tiny.experiment(place, folder), tiny.experiment(place, folder, ADAPTERS)
  batch = plain.train_data.batch(0)
  state = adapted.init_state()
  kept = {p: leaf for p, leaf in leaf_paths(state.params).items() if 'adapter' not in p}
  before = plain.init_state().params
  assert list(leaf_paths(before)) == list(kept)
  apply = lambda e, params: jax.jit(e.model.apply)({'params': params}, batch)[0]
  merged = jax.tree.map(lambda leaf: leaf, state.params)
  for path, leaf in leaf_paths(before).items():
    *nodes, name = path.split('/')
    node = merged
    for key in nodes:
      node = node[key]
    node[name] = leaf
  np.testing.assert_array_equal(apply(adapted, merged), apply(plain, before))


def test_where_they_stand(folder):
  every = adapters(tiny.experiment(PLACES[1], folder, ADAPTERS))
  assert {path.split('/')[3] for path in every if '/decoder/' in path} == {
    'attention_adapter', 'cross_attention_adapter', 'mlp_adapter',
  }  # fmt: skip
  few = adapters(
    tiny.experiment(PLACES[1], folder, (*ADAPTERS, ('model.adapter_placement', 'pfeiffer')))
  )
  assert {path.split('/')[3] for path in few} == {'mlp_adapter'}
  assert few['trunk/encoder/layers/mlp_adapter/down/kernel'] == (2, 16, 4)


def test_behind_the_sublayer_and_before_the_sum(folder):
  """An adapter whose output is a constant adds it to the residual stream: post-norm, one layer."""
  changes = (*ADAPTERS, ('model.num_layers', '1'), ('model.adapter_placement', 'pfeiffer'))
  experiment = tiny.experiment(PLACES[0], folder, changes)
  params = tiny.random_state(experiment).params
  layers = params['trunk']['stack']['layers']
  shift = np.linspace(-1, 1, 16, dtype=np.float32)
  layers['mlp_adapter']['up']['kernel'] *= 0
  layers['mlp_adapter']['up']['bias'] = np.broadcast_to(shift, (1, 16))
  other = jax.tree.map(lambda leaf: leaf, params)
  mlp = other['trunk']['stack']['layers']
  mlp['mlp_adapter']['up']['bias'] = 0 * mlp['mlp_adapter']['up']['bias']
  mlp['mlp']['down']['bias'] = mlp['mlp']['down']['bias'] + shift
  batch = experiment.train_data.batch(0)
  run = jax.jit(lambda params: experiment.model.apply({'params': params}, batch)[0])
  np.testing.assert_allclose(run(params), run(other), rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_they_train_alone(folder):
  changes = (*ADAPTERS, ('tuning.trainable', 'adapter/,^head/'))
  experiment = tiny.experiment(PLACES[0], folder, changes)
  state = tiny.random_state(experiment)
  before = jax.tree.map(np.array, state.params)
  batch = experiment.put(experiment.train_data.batch(0))
  state, _ = experiment.train_step(state, batch)
  after = leaf_paths(state.params)
  for path, leaf in leaf_paths(before).items():
    moved = (np.asarray(after[path]) != leaf).any()
    assert moved == (path.startswith('head/') or 'adapter' in path), path
