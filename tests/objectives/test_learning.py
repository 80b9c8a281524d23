"""On data of known entropy, the loss of every new objective falls to what the data allow.

A document is one of 8 letters, 12 times: all that is uncertain is its first letter, log(8), and
only for who has not seen any other.
"""

import functools
import math

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from objective_setup import Documents, byte_tokenizer, make

from flaxlm.config.tree import load_module
from flaxlm.data import packing
from flaxlm.data.pipeline import PackedItems
from flaxlm.models.model import Model
from flaxlm.training.step import make_train_step
from flaxlm.types import TrainState

pytestmark = pytest.mark.full  # Each trains a model; together they take a minute.

TOKENIZER = byte_tokenizer(4)
ROWS, STEPS = 32, 200


def repeated(number, rng, times=12):
  letters = TOKENIZER.encode('abcdefgh')
  return Documents([np.full(times, letter) for letter in rng.choice(letters, number)])


def alphabets(number, rng):
  del rng
  return Documents([TOKENIZER.encode('abcdefghijklmnopqrstuvwxyz')] * number)


def text_rows(objective, rng, documents=repeated):
  """Rows of a document each."""
  store = documents(ROWS, rng)
  made = [packing.Piece(store, i, 0, store.lengths[i] + objective.gap) for i in range(ROWS)]
  of_row = objective.of_row or (lambda _: objective)
  makers = [of_row(rng) for _ in range(ROWS)]
  return [[maker.features(piece, rng)] for maker, piece in zip(makers, made, strict=True)]


def task_rows(objective, rng):
  """A letter is answered by the next one and by a coin: of three targets, one costs log(2)."""
  examples = [
    {'text': 'abcdefgh'[i], 'target': 'bcdefgha'[i] + 'xy'[coin]}
    for i, coin in zip(rng.integers(0, 8, ROWS), rng.integers(0, 2, ROWS), strict=True)
  ]
  packed = PackedItems(objective, objective.items(examples), None)
  rows = [[objective.features(item, rng) for item in packed[i]] for i in range(len(packed))]
  return rows + [[]] * (ROWS - len(rows))


def learn(objective, family, rows, steps=STEPS):
  """Means by name, over 10 new batches, after some steps."""
  config = load_module('flaxlm.models', family).Config(
    name=family, num_layers=1, emb_dim=32, num_heads=2, max_length=32, init_std=0.1,
    vocab_size=TOKENIZER.vocab_size,
  )  # fmt: skip
  model = Model(load_module('flaxlm.models', family).Trunk(config), objective.head(config))
  rng = np.random.default_rng(0)
  draw = lambda: packing.pack_rows(rows(objective, rng), objective.streams)
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), draw())['params'])
  optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
  step = jax.jit(make_train_step(model, objective, optimizer, seed=0))
  state = TrainState(np.zeros((), np.int32), params, optimizer.init(params), {})
  for _ in range(steps):
    state, _ = step(state, draw())
  measure = jax.jit(
    lambda batch: objective.losses(model.apply({'params': state.params}, batch)[0], batch)[1]
  )
  found = [measure(draw()) for _ in range(10)]
  return {
    name: sum(m[name].total for m in found) / sum(m[name].weight for m in found)
    for name in found[0]
  }


def near(loss, least, slack=0.06):
  assert least - 0.03 < loss < least + slack


@pytest.mark.parametrize('masking', ['whole_word', 'span'])
def test_masked_letters(masking):
  objective = make(
    'masked_lm', 'encoder', TOKENIZER, objective__masking=masking, objective__pairs='none',
    data__max_length=16,
  )  # fmt: skip
  objective._starts_word[:] = True  # Every letter is a word.
  near(learn(objective, 'encoder', text_rows)['mlm_loss'], 0.0)


def test_what_follows():
  """Another document has the same letter once in eight times, and the pair then looks genuine."""
  objective = make('masked_lm', 'encoder', TOKENIZER, data__max_length=32)
  genuine = 8 / 9  # Of the pairs of one letter.
  share = 0.5 / genuine
  least = -share * (genuine * math.log(genuine) + (1 - genuine) * math.log(1 - genuine))
  rows = functools.partial(text_rows, documents=functools.partial(repeated, times=24))
  near(learn(objective, 'encoder', rows, 600)['nsp_loss'], least)


def test_order_of_sentences():
  """A document is the alphabet: which part comes first is in any letter."""
  objective = make(
    'masked_lm', 'encoder', TOKENIZER, objective__pairs='sentence_order', data__max_length=32
  )
  rows = functools.partial(text_rows, documents=alphabets)
  near(learn(objective, 'encoder', rows)['sop_loss'], 0.0)


def test_prefix():
  """The first letter is unknown to one piece of 13, which has 7 targets in the mean."""
  objective = make('prefix_lm', 'decoder', TOKENIZER, data__max_length=16)
  near(learn(objective, 'decoder', text_rows)['loss'], math.log(8) / 13 / 7)


def test_permuted_letters():
  objective = make('permutation_lm', 'xlnet', TOKENIZER, data__max_length=16)
  near(learn(objective, 'xlnet', text_rows)['loss'], 0.0)


def test_denoising():
  objective = make('denoising', 'encoder_decoder', TOKENIZER, data__max_length=16)
  near(learn(objective, 'encoder_decoder', text_rows)['loss'], 0.0)


@pytest.mark.parametrize(
  'name, family', [('completion', 'decoder'), ('seq2seq', 'encoder_decoder')]
)
def test_answers(name, family):
  objective = make(
    name, family, TOKENIZER, 'text_to_text', data__train='rows.tsv', data__max_length=8
  )
  near(learn(objective, family, task_rows)['loss'], math.log(2) / 3)


def test_mixture():
  objective = make(
    'mixture', 'decoder', TOKENIZER, data__max_length=16,
    objective__members=('causal=prefix_lm', 'prefix_lm'),
    objective__settings=('causal.max_prefix=0',),
  )  # fmt: skip
  found = learn(objective, 'decoder', text_rows)
  near(found['causal/loss'], math.log(8) / 13)
  near(found['prefix_lm/loss'], math.log(8) / 13 / 7)
