"""The heads of tasks learn here what they learn there: the same loss and gradients."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

import jax
import public_cases as cases
import public_models as public

from flaxlm.commands import _reference
from flaxlm.config import tree
from flaxlm.interop import convert

pytestmark = pytest.mark.full
RNG = np.random.default_rng(1)


def regression(described, arrays):
  values = RNG.normal(size=2).astype(np.float32)
  ours = {'target_values': values[:, None], 'target_weights': np.ones((2, 1), np.float32)}
  return {'labels': values}, ours


def multi_label(described, arrays):
  theirs = np.zeros((2, len(described.labels)), np.float32)
  theirs[0, 0] = theirs[0, 1] = theirs[1, 1] = 1
  ours = {
    'true_labels': np.array([[0, 1], [1, 0]]),
    'true_slots': np.zeros((2, 2), np.int32),
    # The second text has one true label.
    'true_weights': np.array([[1, 1], [1, 0]], np.float32),
    'target_weights': np.ones((2, 1), np.float32),
  }
  return {'labels': theirs}, ours


def tagging(described, arrays):
  shape = arrays['input_ids'].shape
  targets = RNG.integers(0, len(described.labels), shape)
  read = (RNG.random(shape) < 0.6) & (arrays['attention_mask'] == 1)
  ours = {'targets': targets, 'target_weights': read.astype(np.float32)}
  return {'labels': np.where(read, targets, -100)}, ours


def multiple_choice(described, arrays):
  ones = np.ones((1, 2), np.float32)
  ours = {
    'targets': np.array([[0, 1]]),
    'target_weights': ones,
    'example_weights': ones,
    'example_ids': np.zeros((1, 2), np.int32),
  }
  return {'labels': np.array([1])}, ours


def span_qa(described, arrays):
  starts, ends = np.array([3, 7]), np.array([5, 7])
  ours = {
    'start_targets': starts[:, None],
    'end_targets': ends[:, None],
    'null_positions': np.zeros((2, 1), np.int32),
    'target_weights': np.ones((2, 1), np.float32),
  }
  return {'start_positions': starts, 'end_positions': ends}, ours


TARGETS = {f.__name__: f for f in (regression, multi_label, tagging, multiple_choice, span_qa)}


def our_loss(described, model, batch, targets):
  """The objective's loss, as a function of the parameters."""
  name = described.head.objective
  cls = tree.load_module('flaxlm.objectives', name).Objective
  objective = object.__new__(cls)  # Of which its losses read no more than this.
  objective.num_outputs, objective.threshold = len(described.labels), 0.5

  def loss(params):
    outputs, _ = model.apply({'params': params}, batch)
    if name == 'multiple_choice':  # All choices of an item lie in one row.
      outputs = outputs.transpose(1, 0, 2)
    whole = {**batch, **targets}
    return objective.losses(outputs, whole)[0]['loss'] / objective.weights(whole)['loss']

  return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize('name', cases.TASKS)
def test_loss_and_gradients(name):
  case = cases.CASES[name]
  torch_model, arrays = case.make(), cases.inputs(case)
  if name.endswith('-span'):  # Their softmax runs over padding, too.
    arrays['input_ids'][arrays['attention_mask'] == 0] = 7
    arrays['attention_mask'][:] = 1
  described, model, batch, params, leaves = public.imported(
    torch_model, lambda described: _reference.batch_of(described, arrays)
  )
  theirs, ours = TARGETS[described.head.objective](described, arrays)
  if not name.endswith('-choices'):
    expected = cases.run(torch_model, arrays | theirs).loss
  else:
    rows = {key: torch.tensor(array)[None] for key, array in arrays.items()}
    expected = torch_model(**rows, labels=torch.tensor(theirs['labels'])).loss
  expected.backward()
  found, gradient = our_loss(described, model, batch, ours)(params)
  assert abs(float(found) - expected.item()) <= 1e-5 * expected.item()
  loaded = convert.load(described, public.gradients(torch_model), leaves)
  public.assert_same_gradients(gradient, loaded.leaves)
