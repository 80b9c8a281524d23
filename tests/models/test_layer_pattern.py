"""Local and global layers: what each sees, and that how the pattern is run changes nothing."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from model_setup import LENGTH, config_of, document, hidden, model_of, setup, streams_of

from flaxlm.data import packing
from flaxlm.errors import UserError
from flaxlm.layers.norm import Norm
from flaxlm.layers.position import scheme
from flaxlm.models import decoder, encoder
from flaxlm.models.block import Block
from flaxlm.models.embedding import Embedding
from flaxlm.paths import leaf_paths, virtual_paths

WINDOW = 3


def reach(config, params, family):
  """Which outputs change when token 9 of 20 does: bool [20]."""
  item = document(family, 1, 20)
  changed = {**item, 'inputs': item['inputs'].copy()}
  changed['inputs'][9] = 39 - changed['inputs'][9]
  # Behind another document, so that places are not positions.
  rows = [[document(family, 2, 4), i] for i in (item, changed)]
  out = hidden(model_of(config), params, family, rows)[:, 4:24]
  return (out[0] != out[1]).any(-1)


@pytest.mark.parametrize('family', ['encoder', 'decoder'])
@pytest.mark.parametrize('global_every', [0, 2])
@pytest.mark.parametrize('scan_layers', [False, True])
def test_how_far_a_token_reaches(family, global_every, scan_layers):
  """Two local layers reach twice the window; a global one sees everything (or all that follows)."""
  changes = dict(window=WINDOW, global_every=global_every, scan_layers=scan_layers)
  config = config_of(family, position='rope', **changes)
  _, params = setup(family, position='rope', **changes)
  distance = np.arange(20) - 9
  want = np.abs(distance) <= 2 * WINDOW if not global_every else np.full(20, True)
  if family == 'decoder':
    want &= distance >= 0
  np.testing.assert_array_equal(reach(config, params, family), want)


@pytest.mark.parametrize('family', ['encoder', 'decoder'])
def test_each_kind_of_layer_turns_by_its_own_base(family):
  """One layer, local or global, as one whose only base is its own."""
  rows = [[document(family, 1, 20)]]
  found = lambda params, **changes: hidden(
    model_of(config_of(family, position='rope', num_layers=1, window=WINDOW, **changes)),
    params,
    family,
    rows,
  )[0, :20]
  _, params = setup(family, position='rope', num_layers=1)
  both = dict(rope_theta=1e4, local_rope_theta=50.0)
  local, one = found(params, **both), found(params, rope_theta=50.0)
  np.testing.assert_array_equal(local, one)
  everywhere = found(params, global_every=2, **both)
  np.testing.assert_array_equal(everywhere, found(params, global_every=2, rope_theta=1e4))
  assert np.abs(everywhere - found(params, global_every=2, rope_theta=50.0)).max() > 1e-3


def by_hand(config, params, batch):
  """The trunk as a loop over blocks, each with the leaves whose virtual path names its layer."""
  trunk = params['trunk']
  per_layer = {}
  for path, leaf in leaf_paths(trunk['stack']).items():
    for name, part in zip(virtual_paths(path, leaf), leaf, strict=True):
      _, layer, *names = name.split('/')
      node = per_layer.setdefault(int(layer), {})
      for part_name in names[:-1]:
        node = node.setdefault(part_name, {})
      node[names[-1]] = part
  position = scheme(config, config.name == 'encoder', None).bind({})
  if config.name == 'encoder':
    context = encoder.self_context(position, batch['positions'], batch['segment_ids'])
  else:
    context = decoder.self_context(position, batch['positions'], batch['segment_ids'], None)
  embedding = {'params': trunk.get('embedding', {})}
  arguments = trunk['token']['table'], position, batch['inputs'], batch['positions'], None, True
  x = Embedding(config).apply(embedding, *arguments)
  for i in range(config.num_layers):
    everywhere = config.window is None or (config.global_every and i % config.global_every == 0)
    assert ('attention_norm' in per_layer[i]) == (config.first_attention_norm or i > 0)
    block = Block(config, not everywhere, 'attention_norm' not in per_layer[i])
    x, _ = block.apply({'params': per_layer[i]}, x, context, 1.0, True, None)
  return Norm(config).apply({'params': trunk['final_norm']}, x)


PATTERNS = [
  dict(num_layers=7, global_every=3, first_attention_norm=False),
  dict(num_layers=8, global_every=3),
  dict(num_layers=3, global_every=4, first_attention_norm=False),
  dict(num_layers=1, first_attention_norm=False),
]


@pytest.mark.parametrize('family', ['encoder', pytest.param('decoder', marks=pytest.mark.full)])
@pytest.mark.parametrize('pattern', PATTERNS)
def test_scanned_and_unrolled_are_a_loop_over_layers(family, pattern):
  pattern = pattern | dict(window=WINDOW, position='rope', local_rope_theta=50.0)
  _, params = setup(family, **pattern)
  batch = packing.pack_rows(
    [[document(family, 1), document(family, 2, 9)]], streams_of(family)
  )  # fmt: skip
  config = config_of(family, **pattern)
  want = by_hand(config, params, batch)[0, :16]
  for scan_layers, remat in ((False, 'none'), (True, 'none'), (True, 'full')):
    run = dataclasses.replace(config, scan_layers=scan_layers, remat=remat)
    got = model_of(run).apply({'params': params}, batch)[1].hidden[0, :16]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
  'family', ['decoder', pytest.param('encoder_decoder', marks=pytest.mark.full)]
)
def test_gradients_and_dropout_do_not_depend_on_how_a_pattern_is_run(family):
  pattern = dict(
    num_layers=4, window=WINDOW, global_every=2, first_attention_norm=False, dropout_rate=0.2,
    num_decoder_layers=3 if family == 'encoder_decoder' else None,
  )  # fmt: skip
  _, params = setup(family, **pattern)
  batch = packing.pack_rows([[document(family, 1), document(family, 2)]], streams_of(family))

  def run(scan_layers, remat):
    model = model_of(config_of(family, scan_layers=scan_layers, remat=remat, **pattern))

    def loss(params):
      out = model.apply({'params': params}, batch, False, rngs={'dropout': jax.random.key(1)})
      return (out[1].hidden * np.random.default_rng(0).normal(size=out[1].hidden.shape)).sum()

    return jax.jit(jax.value_and_grad(loss))(params)

  value, grads = run(False, 'none')
  top = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
  other, other_grads = run(True, 'full')
  np.testing.assert_allclose(value, other, rtol=1e-5)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * top)
  jax.tree.map(close, grads, other_grads)


def test_a_first_layer_without_a_norm_changes_no_other_leaf():
  """Shapes, virtual paths and initial values."""
  batch = packing.pack_rows([[document('encoder', 0)]], streams_of('encoder'))

  def init(**changes):
    model = model_of(config_of('encoder', num_layers=3, **changes))
    return leaf_paths(nn.unbox(model.init(jax.random.key(0), batch)['params']))

  full, bare = init(), init(first_attention_norm=False)
  names = lambda leaves: {name for path, x in leaves.items() for name in virtual_paths(path, x)}
  lost = {f'trunk/stack/layers/0/attention_norm/{name}' for name in ('scale', 'bias')}
  assert names(full) - names(bare) == lost and names(bare) < names(full)
  assert bare['trunk/stack/layers_from_1/attention_norm/scale'].shape == (2, 16)
  for path, leaf in bare.items():
    if '_from_1' not in path:
      np.testing.assert_array_equal(leaf, full[path])


@pytest.mark.parametrize(
  'changes, culprit',
  [
    (dict(window=2, global_every=1), 'global_every: 1 makes every layer global'),
    (dict(rope_low_freq_factor=4.0), 'rope_low_freq_factor: must be below'),
  ],
)
def test_mistakes(changes, culprit):
  with pytest.raises(UserError, match=culprit):
    config_of('decoder', max_length=LENGTH, **changes).check()
