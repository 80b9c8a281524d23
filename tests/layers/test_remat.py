"""What each policy keeps. That it changes no number: tests/models/test_invariants.py."""

import jax
import jax.numpy as jnp
from model_setup import config_of, model_of, streams_of

from flaxlm.config.transformer import REMAT
from flaxlm.data import packing
from flaxlm.layers import remat

LAYERS, ROWS, LENGTH, WIDTH = 3, 5, 32, 16


def setup(policy):
  """(parameters, a loss of them)."""
  model = model_of(
    config_of('decoder', scan_layers=True, num_layers=LAYERS, max_length=LENGTH, remat=policy)
  )
  row = packing.pack_rows([[]], streams_of('decoder'))
  row = {key: jnp.zeros((1, LENGTH), value.dtype) for key, value in row.items()}
  batch = {key: jnp.repeat(value, ROWS, 0) for key, value in row.items()}
  params = jax.eval_shape(model.init, jax.random.key(0), row)['params']
  return params, lambda params: model.apply({'params': params}, batch)[1].hidden.sum()


def kept(policy):
  """Numbers that the backward pass is given of each token and layer, over the model's width."""
  params, loss = setup(policy)
  leaves = jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params))
  of_tokens = lambda shape: shape[:1] == (LAYERS,) and {LENGTH, ROWS * LENGTH} & {*shape}
  sizes = [leaf.size for leaf in leaves if of_tokens(leaf.shape)]
  return sum(sizes) / (LAYERS * ROWS * LENGTH * WIDTH)


def test_every_choice_is_a_policy():
  assert ('none', *remat.POLICIES) == REMAT


def test_each_policy_keeps_what_it_says():
  """Of widths: query 1, key and value 1/2 each (two heads share one), MLP 4, all others 1."""
  found = {policy: kept(policy) for policy in REMAT}
  assert found['full'] == found['offload'] == 1
  assert found['context'] == 1 + 2  # the input; context, its projection
  assert found['attention'] == 1 + 2 + 2  # the input; query, key, value; context, its projection
  assert found['dots'] == 1 + 2 + 1 + 4  # query, key, value; the projection; the MLP
  assert found['dots_and_attention'] == found['dots'] + 1
  assert found['none'] > found['dots_and_attention'] + LENGTH / WIDTH  # probabilities and more


def test_the_inputs_of_the_layers_lie_in_host_memory():
  """A CPU has no other, so that its program does not show it; the traced one does."""
  traced = lambda policy: str(jax.make_jaxpr(jax.grad(setup(policy)[1]))(setup(policy)[0]))
  inputs = f'f32<host>[{LAYERS},{ROWS},{LENGTH},{WIDTH}]'
  assert inputs in traced('offload') and 'host' not in traced('full')
