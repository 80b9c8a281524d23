"""Prefix language modelling: what is prefix, what is learned, and who sees whom."""

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from objective_setup import Documents, batch_of, byte_tokenizer, make, random_documents, whole

from flaxlm.config.transformer import TransformerConfig
from flaxlm.decoding.cache import Reader
from flaxlm.decoding.generate import generate
from flaxlm.decoding.sampling import Sampling
from flaxlm.errors import UserError
from flaxlm.models import decoder
from flaxlm.models.model import Model
from flaxlm.models.scores import logits
from flaxlm.objectives import next_token
from flaxlm.objectives.base import Prompt

VOCAB = 40


def prefix_lm(**changes):
  return make('prefix_lm', 'decoder', **changes)


@hypothesis.given(
  st.integers(1, 60), st.integers(0, 2**32), st.floats(0.0, 1.0), st.floats(0.0, 1.0)
)
def test_the_text_is_that_of_a_causal_model_and_its_rest_is_learned(n, seed, low, high):
  objective = prefix_lm(objective__min_prefix=min(low, high), objective__max_prefix=max(low, high))
  store = random_documents(objective.tokenizer, [n], seed)
  f = objective.features(whole(store), np.random.default_rng(seed))
  causal = make('causal_lm', 'decoder').features(whole(store), np.random.default_rng(0))
  np.testing.assert_array_equal(f['inputs'], causal['inputs'])
  np.testing.assert_array_equal(f['targets'], causal['targets'])
  size = int(f['prefix'].sum())
  assert f['prefix'].tolist() == [1] * size + [0] * (len(f['inputs']) - size)
  assert min(low, high) * n - 1 <= size <= 1 + max(low, high) * (n + 1)
  # A target is learned if and only if it is not among the inputs that are prefix.
  assert f['target_weights'].tolist() == [0] * (size - 1) + [1] * (len(f['inputs']) - size + 1)
  assert f['target_weights'].sum() >= 1


def test_every_place_to_cut_is_equally_likely():
  objective = prefix_lm()
  store = random_documents(objective.tokenizer, [9])
  rng = np.random.default_rng(0)
  piece = whole(store)
  sizes = [objective.features(piece, rng)['prefix'].sum() for _ in range(4500)]
  counts = np.bincount(sizes)[1:]
  assert len(counts) == 9 and abs(counts - 500).max() < 5 * 500**0.5


def test_no_prefix_is_a_causal_model():
  objective = prefix_lm(objective__max_prefix=0.0)
  batch = batch_of(objective, random_documents(objective.tokenizer, [30, 100]))
  np.testing.assert_array_equal(batch['prefix'], (batch['positions'] == 0) * (batch['inputs'] > 0))
  np.testing.assert_array_equal(batch['target_weights'], batch['segment_ids'] > 0)


def test_the_smallest_prefix_is_no_larger_than_the_largest():
  with pytest.raises(UserError, match='min_prefix: must not exceed max_prefix=0.3'):
    prefix_lm(objective__min_prefix=0.5, objective__max_prefix=0.3)


@pytest.fixture(scope='module', params=[{}, {'window': 3, 'global_every': 2}])
def trained(request):
  config = TransformerConfig(
    name='decoder', num_layers=2, emb_dim=16, num_heads=2, max_length=32, vocab_size=VOCAB,
    position='rope', tie_embeddings=False, **request.param,
  )  # fmt: skip
  model = Model(decoder.Trunk(config), next_token.Head(config))
  rows = np.ones((1, 4), np.int32)
  keys = ('inputs', 'positions', 'segment_ids')
  shapes = jax.eval_shape(model.init, jax.random.key(0), dict.fromkeys(keys, rows))
  rng = np.random.default_rng(0)
  draw = lambda leaf: (rng.normal(size=leaf.shape) * 0.4).astype(np.float32)
  return model, jax.tree.map(draw, nn.unbox(shapes)['params'])


def hidden(trained, batch):
  model, params = trained
  return np.asarray(model.apply({'params': params}, batch)[1].hidden)


def packed():
  """A row of 10 + 6 tokens and padding; the first 4 and 2 of each are prefix."""
  rng = np.random.default_rng(1)
  segments = np.array([[1] * 10 + [2] * 6 + [0] * 2], np.int32)
  positions = np.array([[*range(10), *range(6), 0, 0]], np.int32)
  prefix = np.array([[1] * 4 + [0] * 6 + [1] * 2 + [0] * 6], np.int32)
  inputs = np.where(segments > 0, rng.integers(1, VOCAB, segments.shape), 0).astype(np.int32)
  return {'inputs': inputs, 'positions': positions, 'segment_ids': segments, 'prefix': prefix}


@pytest.mark.parametrize('place', [1, 3, 4, 7, 11, 13])
def test_a_prefix_token_is_seen_by_its_segment_and_others_by_what_follows(trained, place):
  """Without a window to the bit; with one, what is too far away is not seen either."""
  batch = packed()
  before = hidden(trained, batch)
  inputs = batch['inputs'].copy()
  inputs[0, place] = inputs[0, place] % (VOCAB - 1) + 1
  after = hidden(trained, batch | {'inputs': inputs})
  changed = np.flatnonzero((before != after).any(-1)[0])
  segment = batch['segment_ids'][0]
  mine = np.flatnonzero(segment == segment[place])
  expected = mine if batch['prefix'][0, place] else mine[mine >= place]
  np.testing.assert_array_equal(changed, expected)


@pytest.mark.full
def test_decoding_reads_a_prompt_as_prefix(trained):
  """Greedy tokens are those of a forward pass in which the prompt is marked; prompts differ."""
  model, params = trained
  rng = np.random.default_rng(2)
  prompts = [rng.integers(1, VOCAB, n).astype(np.int32) for n in (5, 9)]
  sampling = Sampling(max_new_tokens=6, temperature=0.0)
  reader = Reader.of(model, params)
  write = lambda prefix: [
    found.tokens
    for found in generate(reader, [Prompt(row, prefix=prefix) for row in prompts], sampling)
  ]
  new = write(True)
  for prompt, tokens in zip(prompts, new, strict=True):
    row = np.concatenate([prompt, tokens])[None]
    marks = (np.arange(row.shape[1]) < len(prompt)).astype(np.int32)[None]
    positions = np.arange(row.shape[1])[None]
    batch = {'inputs': row, 'positions': positions, 'segment_ids': np.ones_like(row)}
    outputs = model.apply({'params': params}, batch | {'prefix': marks})[0]
    best = np.asarray(logits(outputs)).argmax(-1)[0]
    np.testing.assert_array_equal(best[len(prompt) - 1 : -1], tokens)
  if model.trunk.config.window:
    return  # It hides most of the prompt, so that the tokens may be the same.
  causal = write(False)
  assert any((a != b).any() for a, b in zip(new, causal, strict=True))


def test_a_prompt_is_prefix():
  prompt = prefix_lm().prompt('ab')
  assert (
    prompt.prefix
    and len(prompt.inputs) == 3
    and not make('causal_lm', 'decoder').prompt('ab').prefix
  )


def test_documents_in_a_row_have_a_prefix_each():
  objective = prefix_lm(objective__min_prefix=0.5, objective__max_prefix=0.5, data__max_length=32)
  store = Documents([np.full(9, 200), np.full(19, 201)])
  batch = batch_of(objective, store)
  assert byte_tokenizer().bos_id == batch['inputs'][0, 0] == batch['inputs'][0, 10]
  marks = batch['prefix'][0]
  assert marks[:10].sum() == 6 and marks[10:30].sum() == 11 and marks[10] == 1
