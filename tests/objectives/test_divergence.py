"""Divergence and smoothed labels against float64 numpy; the step against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from reference import log_softmax

from flaxlm.errors import UserError
from flaxlm.objectives import divergence, losses
from flaxlm.types import VocabOutput

RNG = np.random.default_rng(0)


def symmetric(a, b):
  """Half of both divergences, of each target."""
  p, q = log_softmax(a), log_softmax(b)
  return 0.5 * (np.exp(p) * (p - q)).sum(-1) + 0.5 * (np.exp(q) * (q - p)).sum(-1)


def test_over_classes():
  a, b = RNG.normal(size=(2, 4, 3, 5)).astype(np.float32)
  weights = RNG.integers(0, 2, (4, 3)).astype(np.float32)
  expected = (symmetric(a, b) * weights).sum()
  np.testing.assert_allclose(divergence.over_classes(a, b, weights), expected, rtol=1e-5)
  assert float(divergence.over_classes(a, a, weights)) == 0


@pytest.mark.parametrize('chunk', [2**24, 60])
def test_over_a_vocabulary_in_chunks_and_without_padding_rows(monkeypatch, chunk):
  monkeypatch.setattr(losses, 'CHUNK_LOGITS', chunk)
  table, bias = RNG.normal(size=(10, 6)), RNG.normal(size=10)
  hidden = RNG.normal(size=(2, 3, 7, 6))
  weights = RNG.random((3, 7))

  def outputs(x, table):
    cast = lambda a: jnp.asarray(a, jnp.float32)
    return VocabOutput(cast(x), cast(table), cast(bias), vocab_size=8, softcap=2.0)

  logits = [2 * np.tanh((x @ table.T + bias)[..., :8] / 2) for x in hidden]
  expected = (symmetric(*logits) * weights).sum()

  def loss(table):
    first, second = (outputs(x, table) for x in hidden)
    return divergence.over_vocabulary(first, second, jnp.asarray(weights, jnp.float32))

  value, gradient = jax.value_and_grad(loss)(table.astype(np.float32))
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  step = np.zeros_like(table)
  step[2, 3] = 1e-5

  def exact(table):
    logits = [2 * np.tanh((x @ table.T + bias)[..., :8] / 2) for x in hidden]
    return (symmetric(*logits) * weights).sum()

  slope = (exact(table + step) - exact(table - step)) / 2e-5
  np.testing.assert_allclose(gradient[2, 3], slope, rtol=1e-3)
  assert not np.any(gradient[8:])


def test_smoothed_labels():
  logits = RNG.normal(size=(4, 3, 5)).astype(np.float32)
  targets = RNG.integers(0, 5, (4, 3))
  weights = RNG.random((4, 3)).astype(np.float32)
  wanted = 0.7 * np.eye(5)[targets] + 0.3 / 5
  expected = (-(wanted * log_softmax(logits)).sum(-1) * weights).sum()
  found = losses.smoothed_class_loss(logits, targets, weights, 0.3)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


# --------------------------------------------------------------------------- in a step


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('r_drop'))


@pytest.mark.full
def test_the_step_minimises_the_mean_of_two_passes_and_their_divergence(folder):
  """At rate 0.1 of dropout; micro-batches only change what dropout draws."""
  changes = (('tuning.r_drop', '0.8'), ('objective.label_smoothing', '0.2'))
  experiment = tiny.experiment('classify.py:encoder', folder, changes)
  batch = experiment.train_data.batch(0)
  state = tiny.random_state(experiment)
  params = jax.tree.map(np.array, state.params)
  _, metrics = experiment.train_step(state, experiment.put(batch))

  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)  # step, micro-batch
  apply = lambda key: experiment.model.apply(
    {'params': params}, batch, False, rngs={'dropout': key}
  )[0]
  first, second = jax.jit(lambda: (apply(key), apply(jax.random.fold_in(key, 0))))()
  assert np.abs(first - second).max() > 1e-3
  targets, weights = batch['targets'], batch['target_weights']
  wanted = 0.8 * np.eye(2)[targets] + 0.2 / 2
  nll = [-(wanted * log_softmax(x)).sum(-1) for x in (first, second)]
  expected = ((nll[0] + nll[1]) / 2 + 0.4 * symmetric(first, second)) * weights
  np.testing.assert_allclose(
    metrics['loss'].value(), expected.sum() / weights.sum(), rtol=1e-4
  )  # fmt: skip


@pytest.mark.parametrize(
  ('place', 'message'),
  [
    ('gpt2.py:mini', 'every dropout rate of the model is 0'),
    ('bert.py:mini', "'masked_lm' does not predict one distribution"),
  ],
)
def test_where_it_would_do_nothing_it_is_an_error(place, message, folder):
  with pytest.raises(UserError, match=f'config.tuning.r_drop: .*{message}'):
    tiny.experiment(place, folder, (('tuning.r_drop', '1'),))
