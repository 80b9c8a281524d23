"""Mixtures: each row is of one member, drawn by weight; members must go together."""

import dataclasses
import functools

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import scipy.stats
from objective_setup import byte_tokenizer, make, random_documents

from flaxlm.config import tree
from flaxlm.data import packing
from flaxlm.data.pipeline import TRAIN, ItemRng, Pipeline
from flaxlm.errors import UserError
from flaxlm.models.model import Model

LEVEL = 1e-4  # Seeds are fixed: a test of a statistic fails at this level or never.
TOKENIZER = byte_tokenizer(100)
THREE = ('r=span_corruption', 'x=span_corruption', 'denoising')
SETTINGS = ('x.noise_density=0.5', 'x.mean_span_length=8', 'denoising.infill_rate=0.5')


@functools.cache
def mixture(
  members=THREE, weights=(0.5, 0.3, 0.2), settings=SETTINGS, model='encoder_decoder', n=64
):
  return make(
    'mixture', model, TOKENIZER, objective__members=members, objective__weights=weights,
    objective__settings=settings, data__max_length=n,
  )  # fmt: skip


def pipeline(objective, store, parts=((0,), 1)):
  config = tree.new(model='encoder_decoder', objective='span_corruption')
  config.total_steps, config.global_batch_size, config.data.shuffle_block = 1, 8, 1
  rows = packing.Concatenated(store, objective.span, objective.gap)
  return Pipeline(tree.from_config_dict(config), objective, rows, None, parts)


def test_rows_are_drawn_by_weight_and_by_nothing_but_epoch_and_row():
  objective = mixture()
  store = random_documents(TOKENIZER, [3000] * 20)
  data = pipeline(objective, store)
  drawn = np.concatenate([data.batch(step)['member'][:, 0] for step in range(250)])
  counts = np.bincount(drawn, minlength=3)
  assert scipy.stats.chisquare(counts, len(drawn) * np.array([0.5, 0.3, 0.2])).pvalue > LEVEL
  whole = data.batch(7)
  for key, rows in pipeline(objective, store).batch(7).items():
    np.testing.assert_array_equal(rows, whole[key])
  halves = [pipeline(objective, store, ((i,), 2)).batch(7) for i in (0, 1)]
  for key, rows in whole.items():
    np.testing.assert_array_equal(rows, np.concatenate([half[key] for half in halves]))
  # The same row is drawn anew in the next epoch.
  first = [objective.of_row(ItemRng(0, TRAIN).at(0, i, 2**63))._mark[0] for i in range(200)]
  later = [objective.of_row(ItemRng(0, TRAIN).at(1, i, 2**63))._mark[0] for i in range(200)]
  assert 0 < np.mean(np.array(first) == np.array(later)) < 0.6


def test_a_row_is_what_its_member_makes_of_it():
  objective = mixture()
  store = random_documents(TOKENIZER, [30, 50, 9, 200])
  rows = packing.Concatenated(store, objective.span, objective.gap)
  for number, row in enumerate(rows[i] for i in range(len(rows))):
    rng = ItemRng(3, TRAIN)
    maker = objective.of_row(rng.at(0, number, 2**63))
    member = int(maker._mark[0])
    found = [maker.features(piece, rng.at(0, number, i)) for i, piece in enumerate(row)]
    marks = [f.pop('member').tolist() for f in found if f]
    assert marks == [[member]] + [[]] * (len(marks) - 1)
    alone = [
      objective.members[member].features(piece, rng.at(0, number, i)) for i, piece in enumerate(row)
    ]
    for a, b in zip(found, alone, strict=True):
      assert (a is None) == (b is None)
      for key in a or ():
        np.testing.assert_array_equal(a[key], b[key])


@hypothesis.given(
  st.lists(st.integers(0, 150), min_size=1, max_size=12).filter(lambda n: max(n) > 1),
  st.sampled_from([12, 33, 64]),
  st.integers(0, 2**32),
)
def test_any_mixture_of_documents_fits_every_member(lengths, length, seed):
  objective = mixture(n=length)
  store = random_documents(TOKENIZER, lengths)
  rows = packing.Concatenated(store, objective.span, objective.gap)
  rng = np.random.default_rng(seed)
  for member in objective.members:
    found = [[member.features(piece, rng) for piece in rows[i]] for i in range(len(rows))]
    streams = {name: s for name, s in objective.streams.items() if name != 'member'}
    batch = packing.pack_rows([[f for f in row if f] for row in found], streams)
    assert batch['encoder_inputs'].shape == (len(rows), length)


def test_metrics_by_member_add_up():
  objective = mixture()
  config = tree.new(model='encoder_decoder', objective='span_corruption')
  config.total_steps, config.model.num_layers, config.model.emb_dim = 1, 1, 16
  config.model.num_heads, config.model.max_length = 2, 64
  model_config = tree.from_config_dict(config).model
  model_config = dataclasses.replace(model_config, vocab_size=TOKENIZER.vocab_size)
  trunk = tree.load_module('flaxlm.models', 'encoder_decoder').Trunk(model_config)
  model = Model(trunk, objective.head(model_config))
  data = pipeline(objective, random_documents(TOKENIZER, [300] * 20))
  batch = data.batch(0)
  assert set(batch['member'][:, 0]) == {0, 1, 2}
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), batch))['params']
  outputs, _ = jax.jit(model.apply)({'params': params}, batch)
  totals, metrics = objective.losses(outputs, batch)
  assert objective.terms == ('loss',) and set(metrics) == {
    f'{label}{name}' for label in ('', 'r/', 'x/', 'denoising/') for name in ('loss', 'accuracy')
  }
  np.testing.assert_allclose(totals['loss'], metrics['loss'].total, rtol=1e-6)
  assert objective.weights(batch)['loss'] == metrics['loss'].weight
  labels = ('r', 'x', 'denoising')
  for part in ('total', 'weight'):
    whole = sum(float(getattr(metrics[f'{label}/loss'], part)) for label in labels)
    np.testing.assert_allclose(whole, float(getattr(metrics['loss'], part)), rtol=1e-5)
  for number, label in enumerate(labels):
    rows = batch['member'][:, 0] == number
    assert metrics[f'{label}/loss'].weight == batch['target_weights'][rows].sum()


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(members=()), 'name at least two'),
    (dict(members=('span_corruption',), weights=()), 'name at least two'),
    (dict(members=('a=denoising', 'a=denoising')), "two members are called 'a'"),
    (dict(members=('denoising', 'span_coruption')), "did you mean 'span_corruption'"),
    (dict(members=('denoising', 'causal_lm')), "'causal_lm' needs a model of family decoder"),
    (dict(members=('denoising', 'seq2seq')), "'seq2seq' learns from labelled rows"),
    (dict(members=('denoising', 'mixture')), 'a mixture cannot be a member'),
    (dict(members=('causal_lm', 'prefix_lm'), model='decoder'), "batch key 'prefix'.*'prefix_lm'"),
    (
      dict(members=('masked_lm', 'b=masked_lm'), settings=('b.pairs=none',), model='encoder'),
      "batch key 'nsp_positions': only 'masked_lm' has it",
    ),
    (dict(members=THREE[1:], settings=('x.z_loss=0.1',)), 'z_loss is 0.1 and 0.0'),
    (dict(settings=('y.mask_rate=0.1',)), "no member 'y'"),
    (dict(settings=('x.mask_rate=0.1',)), "'x' has no field 'mask_rate'"),
    (dict(settings=('x.noise_density=2',)), r'settings: x\.noise_density: must be < 0.9'),
    (dict(settings=('x.noise_density',)), 'is not LABEL.FIELD=VALUE'),
    (dict(weights=(1.0,)), 'weights: 1 weights for 3 members'),
    (dict(weights=(1.0, -1.0, 1.0)), 'must be > 0'),
  ],
)
def test_members_that_do_not_go_together_are_named(changes, message):
  changes = {'settings': (), 'weights': ()} | changes
  with pytest.raises(UserError, match=message):
    mixture(**changes)


def test_members_of_a_decoder_and_of_an_encoder():
  members = 'prefix_lm', 'causal=prefix_lm'
  prefix, causal = (
    mixture(
      members=order, weights=(), settings=('causal.max_prefix=0',), model='decoder',
    )
    for order in (members, members[::-1])
  )  # fmt: skip
  assert prefix.prompt('a').prefix and prefix.perplexity == 'loss'
  assert not causal.prompt('a').prefix  # As it was trained.
  assert not prefix.predicts_masks and not prefix.sentinels
  words = mixture(
    members=('masked_lm', 'span=masked_lm'), weights=(), settings=('span.masking=span',),
    model='encoder',
  )  # fmt: skip
  assert words.terms == ('mlm_loss', 'nsp_loss')
  assert words.predicts_masks and words.prompt is None
