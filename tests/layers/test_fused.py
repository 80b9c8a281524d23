"""Fused kernels against the plain products, whole models with their gradients; clear refusals."""

import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import simulated

from flaxlm.config.transformer import TransformerConfig
from flaxlm.errors import UserError
from flaxlm.layers import fused
from flaxlm.models import decoder, encoder

LENGTHS = (19,), (7, 11, 3), (21,)


def batch(length):
  """Rows of packed segments, the first with padding behind."""
  ids = np.zeros((3, length), np.int32)
  positions = np.zeros_like(ids)
  for row, lengths in enumerate(LENGTHS):
    start = 0
    for number, size in enumerate(lengths, 1):
      size = size * length // 21
      ids[row, start : start + size] = number
      positions[row, start : start + size] = np.arange(size)
      start += size
  rng = np.random.default_rng(0)
  return {'inputs': rng.integers(0, 50, ids.shape), 'positions': positions, 'segment_ids': ids}


def outputs(trunk, config, rows):
  """(hidden states of real tokens, gradients of a loss of them)."""
  model = trunk.Trunk(dataclasses.replace(config, vocab_size=50, max_length=256))
  plain = trunk.Trunk(dataclasses.replace(model.config, attention_kernel='plain'))
  params = nn.unbox(plain.init(jax.random.key(0), rows)['params'])
  real = (rows['segment_ids'] > 0)[..., None]

  def loss(params):
    hidden = model.apply({'params': params}, rows).hidden * real
    return (hidden * jnp.cos(jnp.arange(hidden.size).reshape(hidden.shape))).sum(), hidden

  grads, hidden = jax.jit(jax.grad(loss, has_aux=True))(params)
  return hidden, grads


CASES = [
  (decoder, 21, {}),
  (decoder, 150, {'num_kv_heads': 2, 'attention_softcap': 2.0, 'position': 'rope'}),
  (decoder, 21, {'window': 5, 'global_every': 2, 'num_kv_heads': 1}),
  (encoder, 21, {'norm_placement': 'post'}),
  (encoder, 150, {'window': 9, 'head_dim': 4}),
]


def compare(kernel, trunk, length, options, precision='float32', tolerance=2e-5):
  config = TransformerConfig(
    num_layers=2, emb_dim=16, num_heads=4, init_std=0.3, precision=precision, **options
  )
  rows = batch(length)
  want = outputs(trunk, dataclasses.replace(config, attention_kernel='plain'), rows)
  got = outputs(trunk, dataclasses.replace(config, attention_kernel=kernel), rows)
  as_float = lambda tree: [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(tree)]
  got, want = as_float(got), as_float(want)
  # The gradient of a key's bias is nothing but rounding: held against the largest as well.
  floor = 1e-2 * max(np.abs(leaf).max() for leaf in want)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), floor))


@pytest.mark.parametrize(
  ('trunk', 'length', 'options'),
  [CASES[2], *(pytest.param(*case, marks=pytest.mark.full) for case in (*CASES[:2], *CASES[3:]))],
)
def test_splash_is_the_plain_product(trunk, length, options):
  compare('splash', trunk, length, options)


@pytest.mark.full
def test_cudnn_is_given_what_the_plain_product_computes(monkeypatch):
  """There is no cuDNN on CPUs: the same call goes to XLA's implementation instead."""
  of_xla = lambda q, k, v, mask: jax.nn.dot_product_attention(
    q, k, v, mask=mask, scale=1.0, implementation='xla'
  )
  monkeypatch.setattr(fused, '_cudnn', of_xla)
  monkeypatch.setattr(fused.sharding, 'platform', lambda: 'gpu')
  options = {'num_kv_heads': 2, 'head_dim': 8, 'position': 'rope', 'window': 5, 'global_every': 2}
  compare('cudnn', decoder, 21, options, 'bfloat16', 0.05)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'position': 'alibi'}, "attention_kernel: 'splash' cannot serve position=alibi; set auto"),
    (
      {'attention_dropout_rate': 0.1},
      "attention_kernel: 'splash' cannot serve attention_dropout_rate=0.1",
    ),
    ({'attention_kernel': 'cudnn'}, "attention_kernel: 'cudnn' cannot serve precision=float32"),
    (
      {'attention_kernel': 'cudnn', 'precision': 'bfloat16'},
      "attention_kernel: 'cudnn' is for GPUs, not for cpu",
    ),
  ],
)
def test_a_kernel_that_cannot_serve_is_refused(options, message):
  config = TransformerConfig(**{'attention_kernel': 'splash', **options})
  with pytest.raises(UserError) as error:
    fused.chosen(config, deterministic=True)
  assert str(error.value).startswith(f'config.model.{message}')


def test_auto_takes_what_the_device_has_and_the_model_can_use(monkeypatch):
  on = lambda platform: monkeypatch.setattr(fused.sharding, 'platform', lambda: platform)
  plain = TransformerConfig(precision='bfloat16')
  softcap = dataclasses.replace(plain, attention_softcap=5.0)
  dropout = dataclasses.replace(plain, attention_dropout_rate=0.1)
  bias = dataclasses.replace(plain, position='t5_bias')
  found = {}
  for platform in ('cpu', 'tpu', 'gpu'):
    on(platform)
    found[platform] = [
      fused.chosen(plain, False),
      fused.chosen(softcap, False),
      fused.chosen(dropout, False),
      fused.chosen(dropout, True),
      fused.chosen(bias, False),
    ]
  assert found == {
    'cpu': ['plain'] * 5,
    'tpu': ['splash', 'splash', 'plain', 'splash', 'plain'],
    'gpu': ['cudnn', 'plain', 'plain', 'cudnn', 'plain'],
  }


MESHED = """
import test_fused as t, jax, numpy as np
from flaxlm import sharding
rows = {key: np.repeat(value, 4, 0)[:8] for key, value in t.batch(21).items()}
config = t.TransformerConfig(
  num_layers=2, emb_dim=16, num_heads=4, num_kv_heads=2, vocab_size=50, position='rope',
  attention_kernel='splash', init_std=0.3,
)
model = t.decoder.Trunk(config)
params = t.nn.unbox(model.init(jax.random.key(0), rows)['params'])
real = (rows['segment_ids'] > 0)[..., None]
def loss(params, batch):
  hidden = model.apply({'params': params}, batch).hidden * real
  return (hidden * np.cos(np.arange(hidden.size)).reshape(hidden.shape)).sum(), hidden
gradient = jax.grad(loss, has_aux=True)
alone = jax.tree.leaves(jax.jit(gradient)(params, rows))
top = max(np.abs(leaf).max() for leaf in alone)
for heads in ('tensor', ''):
  names = ['batch=data+fsdp', 'heads=tensor', f'kv_heads={heads}', 'embed=fsdp', 'vocab=tensor']
  rules = sharding.parse_rules(names)
  mesh = sharding.make_mesh((2, 2, 2))
  def run(params, batch):
    with sharding.placed(mesh, rules):
      return gradient(params, batch)
  divided = jax.jit(run, in_shardings=(None, sharding.batch_sharding(mesh, rules)))(params, rows)
  for a, b in zip(jax.tree.leaves(divided), alone, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(np.abs(b).max(), 1e-2 * top))
"""


@pytest.mark.full
def test_splash_runs_where_rows_and_heads_are():
  simulated(MESHED, folders=[pathlib.Path(__file__).parent])
