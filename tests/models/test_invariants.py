"""What must hold for every family: packing, isolation of documents, how the layers are run."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import numpy as np
import pytest
from model_setup import FAMILIES, config_of, document, hidden, model_of, setup, streams_of

from flaxlm.config.transformer import POSITIONS, REMAT
from flaxlm.data import packing


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('position', POSITIONS)
def test_packed_equals_unpacked_and_nothing_leaks(family, position):
  model, params = setup(family, position=position)
  first, second, other = (document(family, seed) for seed in (1, 2, 3))
  rows = [[first, second], [first], [second], [first, other], [second, first]]
  out = hidden(model, params, family, rows)
  size = 7
  alone, packed = out[2, :size], out[0, size : 2 * size]
  np.testing.assert_allclose(packed, alone, rtol=0, atol=1e-5 * np.abs(alone).max())
  np.testing.assert_allclose(out[0, :size], out[1, :size], atol=1e-5 * np.abs(alone).max())
  # Another neighbour: not one bit may change, before or behind it.
  np.testing.assert_array_equal(out[3, :size], out[0, :size])
  swapped = hidden(model, params, family, [[other, first]] * len(rows))
  np.testing.assert_array_equal(swapped[0, size : 2 * size], out[4, size : 2 * size])
  assert np.abs(out[0, size : 2 * size] - out[3, size : 2 * size]).max() > 1e-3


# How the layers are run, besides unrolled without remat: every pair of (family, scan) once, and the
# policies that differ in kind. The rest of the product is in the full suite.
QUICK_RUNS = {
  'encoder': [(True, 'full'), (False, 'dots'), (True, 'attention')],
  'decoder': [(True, 'none'), (False, 'full'), (True, 'dots'), (True, 'offload')],
  'encoder_decoder': [(True, 'dots'), (False, 'full')],
}


@pytest.mark.parametrize(
  ('family', 'runs'),
  [(family, tuple(runs)) for family, runs in QUICK_RUNS.items()]
  + [pytest.param(family, tuple(itertools.product((False, True), REMAT))[1:],
                  marks=pytest.mark.full) for family in FAMILIES],
)  # fmt: skip
def test_how_the_layers_are_run_changes_nothing(family, runs):
  batch = packing.pack_rows([[document(family, 1), document(family, 2)]], streams_of(family))
  # Where random numbers are drawn is most of what there is to compile; `depth` tells the layers.
  rates = dict(layer_drop_rate=0.3)
  if len(runs) > 4:
    rates |= dict(dropout_rate=0.2, attention_dropout_rate=0.2)
  _, params = setup(family)
  rngs = {'dropout': jax.random.key(1)}

  def run(scan_layers, remat):
    model = model_of(config_of(family, scan_layers=scan_layers, remat=remat, **rates))

    def loss(params):
      out = model.apply({'params': params}, batch, False, rngs=rngs)[1].hidden
      return (out * np.random.default_rng(0).normal(size=out.shape)).sum()

    return jax.jit(jax.value_and_grad(loss))(params)

  value, grads = run(False, 'none')
  # A key's bias has a gradient of 0 but for rounding: it is held against the largest of all.
  top = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))

  def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(a).max(), 0.1 * top))

  for way in runs:
    other, other_grads = run(*way)
    # The loss is a sum of both signs, and as small as it happens to be.
    np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-4)
    jax.tree.map(close, grads, other_grads)


def test_how_the_layers_are_run_does_not_change_their_initialisation():
  plain, scanned = (setup_params(config_of('decoder', scan_layers=s)) for s in (False, True))
  jax.tree.map(np.testing.assert_array_equal, plain, scanned)


def test_layer_i_does_not_depend_on_how_many_follow():
  few, many = (setup_params(config_of('decoder', num_layers=n, init='bert')) for n in (2, 3))
  stack = lambda p: p['trunk']['stack']['layers']
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:2]), stack(few), stack(many))
  kernel = stack(many)['attention']['query']['kernel']
  assert np.abs(kernel[0] - kernel[1]).max() > 0.01


def setup_params(config):
  batch = packing.pack_rows([[document(config.name, 0)]], streams_of(config.name))
  return nn.unbox(jax.jit(model_of(config).init)(jax.random.key(0), batch)['params'])


def test_a_decoder_sees_nothing_of_the_future():
  model, params = setup('decoder')
  item = document('decoder', 1, 12)
  changed = {**item, 'inputs': item['inputs'].copy()}
  changed['inputs'][8] = 39 - changed['inputs'][8]
  out = hidden(model, params, 'decoder', [[item], [changed]])
  np.testing.assert_array_equal(out[0, :8], out[1, :8])
  assert (np.abs(out[0, 8:12] - out[1, 8:12]).max(-1) > 1e-4).all()


@pytest.mark.parametrize('norm_placement', ['pre', 'post'])
@pytest.mark.parametrize('family', FAMILIES)
def test_bfloat16_stays_near_float32(family, norm_placement):
  changes = dict(norm_placement=norm_placement, init_std=0.05)
  model, params = setup(family, **changes)
  half = model_of(dataclasses.replace(model.trunk.config, precision='bfloat16'))
  rows = [[document(family, 1)]]
  exact, rough = hidden(model, params, family, rows), hidden(half, params, family, rows)
  assert rough.dtype == jax.numpy.bfloat16
  # Eight bits of mantissa, some ten roundings deep.
  error = np.linalg.norm(exact[0, :7] - rough[0, :7].astype(np.float32))
  assert 0 < error < 0.05 * np.linalg.norm(exact[0, :7])


@pytest.mark.parametrize('norm_placement, share', [('post', 0.0), ('pre', 0.5)])
def test_what_a_stack_ends_with(norm_placement, share):
  """T5 drops of its last norm's output; BART and the original Transformer do not."""
  model, params = setup('encoder_decoder', norm_placement=norm_placement, dropout_rate=0.5)
  batch = packing.pack_rows([[document('encoder_decoder', 0)]], streams_of('encoder_decoder'))
  apply = lambda params: model.apply(
    {'params': params}, batch, False, rngs={'dropout': jax.random.key(0)}
  )
  output = jax.jit(apply)(params)[1]
  for values in (output.hidden[0, :7], output.encoder[0, :8]):
    assert abs(np.mean(np.asarray(values) == 0) - share) < 0.2
