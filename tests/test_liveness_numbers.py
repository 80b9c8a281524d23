"""Another value of a field changes numbers, not only programs; how a program runs does not."""

import jax
import liveness_walk
import numpy as np
import pytest
from liveness_tables import PREDICTED_ONLY, PROGRAM_ONLY
from liveness_walk import FIELDS, attempts, values_of

from flaxlm.config import tree


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return liveness_walk.write_corpus(tmp_path_factory.mktemp('liveness'))


def numbers(experiment):
  """Parameters after initialisation and two steps, the weights to evaluate, and the losses."""
  state = experiment.init_state()
  found = [jax.tree.map(np.array, state.params)]
  for i in range(2):
    state, metrics = experiment.train_step(state, experiment.put(experiment.train_data.batch(i)))
    found.append(np.array([metrics['loss'].value(), float(metrics['grad_norm'])]))
  evaluated = experiment.weights(state.params, state.extras)
  return jax.tree.leaves([found, jax.tree.map(np.array, (state.params, evaluated))])


NODES = ('model.', 'objective.', 'optimizer.', 'tuning.')
NUMERIC = [f for f in FIELDS if f[0].startswith(NODES)]


@pytest.mark.full
@pytest.mark.parametrize(
  ('key', 'file', 'cls'),
  [f for f in NUMERIC if f[0] not in PROGRAM_ONLY | PREDICTED_ONLY],
  ids=lambda x: x if type(x) is str else '',
)
def test_another_value_changes_the_numbers(key, file, cls, folder):
  """Not only the program: losses or parameters of two steps come out otherwise."""
  rules, texts = values_of(key, cls, folder)
  for text in texts:
    tried = []
    for base, other in attempts(key, cls, rules, folder, text):
      if base.batches != other.batches or base.shapes != other.shapes:
        tried.append(True)
      else:
        pairs = zip(numbers(base.experiment), numbers(other.experiment), strict=True)
        tried.append(not all(np.array_equal(a, b) for a, b in pairs))
      if tried[-1]:
        break
    if tried or rules.choices is not None:
      assert any(tried), f'{key}={text} changes no number'
    if tried and rules.choices is None:
      break


@pytest.mark.full
@pytest.mark.parametrize('key', sorted(PROGRAM_ONLY))
def test_how_a_program_runs_changes_no_number(key, folder):
  cls = tree.node_class('model', 'decoder')
  rules, texts = values_of(key, cls, folder)
  for text in texts:
    for base, other in attempts(key, cls, rules, folder, text):
      pairs = zip(numbers(base.experiment), numbers(other.experiment), strict=True)
      for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)
      break
