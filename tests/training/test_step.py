"""The step: how a batch is cut changes nothing, padding counts for nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from reference import log_softmax

from flaxlm.config.optimization import OptimizerConfig
from flaxlm.paths import leaf_paths
from flaxlm.training.optimizer import make_optimizer
from flaxlm.training.step import make_train_step

# Each family; MLM has two terms, whose denominators differ, and XLNet a memory.
RECIPES = (
  'bert.py:mini',
  *(
    pytest.param(name, marks=pytest.mark.full)
    for name in ('gpt2.py:mini', 't5.py:mini', 'xlnet.py:mini')
  ),
)
STEPS = 3
CONSTANT = dict(schedule='constant', warmup_steps=0)
SGD = make_optimizer(OptimizerConfig(name='sgd', learning_rate=0.3, **CONSTANT), STEPS)[0]
ADAM = make_optimizer(OptimizerConfig(**CONSTANT), STEPS)[0]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('step'))


@pytest.fixture(scope='module', params=RECIPES)
def experiment(request, folder):
  return tiny.experiment(request.param, folder, (('global_batch_size', '8'),))


def start(experiment, optimizer):
  state = tiny.random_state(experiment)
  return state.replace(opt_state=optimizer.init(state.params))


def both(optimizers):
  """Each optimizer behind one step, so that one program serves them: (adam, sgd) by the state."""

  def init(params):
    return {'use_adam': jnp.ones(()), 'states': [o.init(params) for o in optimizers]}

  def update(grads, state, params):
    pairs = [o.update(grads, s, params) for o, s in zip(optimizers, state['states'], strict=True)]
    (first, second), states = zip(*pairs, strict=True)
    chosen = jax.tree.map(lambda a, b: jnp.where(state['use_adam'] > 0, a, b), first, second)
    return chosen, {'use_adam': state['use_adam'], 'states': list(states)}

  return optax.GradientTransformation(init, update)


EITHER = both((ADAM, SGD))


def run(experiment, step, batches, use_adam):
  """(losses of all terms by step, parameters after the last)."""
  state = start(experiment, EITHER)
  state.opt_state['use_adam'] = jnp.asarray(float(use_adam))
  losses = []
  for batch in batches:
    state, metrics = step(state, batch)
    losses.append([metrics[name].value() for name in ('loss', *experiment.objective.terms)])
  return np.array(losses), state.params


def compiled(experiment, parts):
  return jax.jit(
    make_train_step(experiment.model, experiment.objective, EITHER, seed=0, num_microbatches=parts)
  )


@pytest.fixture(scope='module')
def whole_step(experiment):
  return compiled(experiment, 1)


def assert_same_parameters(expected, actual, start):
  """To 1e-5 of each leaf's maximum; leaves that did not really move, against all that moved.

  The gradient of a key's bias is 0 but for rounding, so its own size says nothing of it.
  """
  expected, actual, start = (leaf_paths(tree) for tree in (expected, actual, start))
  moved = {path: np.abs(expected[path] - start[path]).max() for path in expected}
  top = max(moved.values())
  assert top > 0.02
  for path, leaf in expected.items():
    scale = np.abs(leaf).max() if moved[path] > 1e-5 * top else top
    np.testing.assert_allclose(actual[path], leaf, rtol=0, atol=1e-5 * scale, err_msg=path)


def test_four_microbatches_equal_one(experiment, whole_step):
  batches = tiny.uneven([experiment.train_data.batch(i) for i in range(STEPS)])
  for batch in batches:
    shares = batch['target_weights'].reshape(2, 4, -1).sum((0, 2))
    assert len(set(shares)) > 1  # Interleaved parts: a mean of means would differ.
  if 'nsp_weights' in batches[0]:
    weights = experiment.objective.weights(batches[0])
    assert weights['mlm_loss'] != weights['nsp_loss'] > 0
  parts = compiled(experiment, 4)
  expected, _ = run(experiment, whole_step, batches, use_adam=True)
  losses, _ = run(experiment, parts, batches, use_adam=True)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  _, expected = run(experiment, whole_step, batches, use_adam=False)
  _, params = run(experiment, parts, batches, use_adam=False)
  assert_same_parameters(expected, params, start(experiment, EITHER).params)


def test_padding_rows_and_their_contents_count_for_nothing(experiment, whole_step):
  """Half the rows empty: the same as those rows with garbage where no weight or segment is."""
  batch = experiment.train_data.batch(0)
  keep = np.arange(8) % 2 == 0
  empty = {key: rows * keep[:, None].astype(rows.dtype) for key, rows in batch.items()}
  rng = np.random.default_rng(0)
  garbage = {}
  for key, rows in empty.items():
    noise = rng.integers(0, batch[key].max(initial=0) + 1, rows.shape).astype(rows.dtype)
    silent = key.endswith(('weights', 'segment_ids'))
    garbage[key] = rows if silent else np.where(keep[:, None], rows, noise)
  expected, expected_params = run(experiment, whole_step, [empty], use_adam=False)
  actual, params = run(experiment, whole_step, [garbage], use_adam=False)
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  initial = start(experiment, EITHER).params
  assert_same_parameters(expected_params, params, initial)
  # Fuller rows do count.
  full, _ = run(experiment, whole_step, [batch], use_adam=False)
  assert abs(full[0, 0] - expected[0, 0]) > 1e-4


def test_a_batch_without_any_target_is_no_nan(experiment, whole_step):
  batch = experiment.train_data.batch(0)
  batch = {key: np.zeros_like(rows) for key, rows in batch.items()}
  state, metrics = whole_step(start(experiment, EITHER), batch)
  assert float(metrics['loss'].total) == 0 == float(metrics['grad_norm'])
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.full
def test_every_step_and_every_micro_batch_draws_its_own_dropout(folder):
  changes = (('num_microbatches', '2'), ('global_batch_size', '4'))
  experiment = tiny.experiment('classify.py:encoder', folder, changes)
  batch = experiment.train_data.batch(0)
  apply = jax.jit(
    lambda params, rows, key: experiment.model.apply(
      {'params': params}, rows, False, rngs={'dropout': key}
    )[0]
  )
  for step in (0, 3):
    state = tiny.random_state(experiment)
    state = state.replace(step=jax.device_put(np.int32(step), state.step.sharding))
    params = jax.tree.map(np.array, state.params)
    _, metrics = experiment.train_step(state, experiment.put(batch))
    key = jax.random.fold_in(jax.random.key(0), step)
    losses = []
    for number in (0, 1):
      rows = {name: value[number::2] for name, value in batch.items()}
      log_p = log_softmax(apply(params, rows, jax.random.fold_in(key, number)))
      nll = -np.take_along_axis(log_p, rows['targets'][..., None], -1)[..., 0]
      losses.append((nll * rows['target_weights']).sum())
    expected = sum(losses) / batch['target_weights'].sum()
    np.testing.assert_allclose(metrics['loss'].value(), expected, rtol=1e-5)
