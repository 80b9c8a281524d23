"""Small models with random parameters, and the ways tests run them."""

import functools

import flax.linen as nn
import jax
import numpy as np
import stubs

from flaxlm.config.transformer import TransformerConfig
from flaxlm.config.tree import load_module
from flaxlm.data.packing import Stream
from flaxlm.decoding.cache import Reader
from flaxlm.decoding.generate import generate
from flaxlm.decoding.sampling import Sampling
from flaxlm.models.model import Model
from flaxlm.models.scores import logits
from flaxlm.objectives import masked_lm, next_token
from flaxlm.objectives.base import Prompt

VOCAB = 50
# No multiple of the bucket, so that the cap on cached slots is reached.
LONGEST = 60
GREEDY = Sampling(max_new_tokens=12, temperature=0.0)


@functools.cache
def setup(family, **changes):
  """(model, parameters) with random leaves: biases and norms are away from 0 and 1."""
  defaults = dict(
    name=family, num_layers=2, emb_dim=16, num_heads=4, num_kv_heads=2, max_length=LONGEST,
    vocab_size=VOCAB, init_std=0.3, position='rope', scan_layers=True,
  )  # fmt: skip
  config = TransformerConfig(**(defaults | changes))
  model = Model(load_module('flaxlm.models', family).Trunk(config), next_token.Head(config))
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), padded(family, [[1]], [[1]])))
  rng = np.random.default_rng(0)
  draw = lambda leaf: (rng.normal(size=leaf.shape) * 0.4).astype(np.float32)
  return model, jax.tree.map(draw, shapes['params'])


def padded(family, rows, sources=None, length=LONGEST):
  """A batch of rows that are read in one piece."""

  def stream(prefix, rows):
    inputs, segments = np.zeros((2, len(rows), length), np.int32)
    for b, row in enumerate(rows):
      inputs[b, : len(row)] = row
      segments[b, : len(row)] = 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), inputs.shape)
    names = ('inputs', 'segment_ids', 'positions')
    values = (inputs, segments, positions)
    return {prefix + name: value for name, value in zip(names, values, strict=True)}

  if family == 'encoder_decoder':
    return stream('encoder_', sources) | stream('decoder_', rows)
  return stream('', rows)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch):
  return logits(model.apply({'params': params}, batch)[0])


def full_logits(model, params, rows, sources=None):
  """Logits [B, L, V] by one forward pass without a cache."""
  family = model.trunk.config.name
  return np.asarray(forward(model, params, padded(family, rows, sources)))


def draw(sizes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(1, VOCAB, n).astype(np.int32) for n in sizes]


def sources_of(family, prompts):
  lengths = [7, 40, 2, 11]
  return draw(lengths[: len(prompts)], seed=9) if family == 'encoder_decoder' else None


def prompts_of(rows, sources=None, eos_id=None, prefix=False):
  sources = sources or [None] * len(rows)
  return [Prompt(row, source, eos_id, prefix) for row, source in zip(rows, sources, strict=True)]


@functools.cache
def reader_of(family, **changes):
  return Reader.of(*setup(family, **changes))


def run(family, model, params, rows, sampling=GREEDY, eos_id=None):
  """New tokens of each row."""
  prompts = prompts_of(rows, sources_of(family, rows), eos_id)
  return [found.tokens for found in generate(Reader.of(model, params), prompts, sampling)]


@functools.cache
def masked_model(vocab):
  """(model, parameters) of a masked language model."""
  config = TransformerConfig(
    name='encoder', num_layers=2, emb_dim=16, num_heads=2, max_length=LONGEST, vocab_size=vocab
  )
  trunk = load_module('flaxlm.models', 'encoder').Trunk(config)
  model = Model(trunk, masked_lm.Head(config, ''))
  batch = padded('encoder', [[1]]) | {'target_positions': np.zeros((1, 1), np.int32)}
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batch))
  rng = np.random.default_rng(0)
  draw = lambda leaf: (rng.normal(size=leaf.shape) * 0.4).astype(np.float32)
  return model, jax.tree.map(draw, shapes['params'])


def masked_objective():
  """What decoding knows of masked_lm: the keys of its batches."""
  keys = ('inputs', 'token_type_ids'), ('targets', 'target_positions', 'target_weights')
  streams = {str(i): Stream(LONGEST, names) for i, names in enumerate(keys)}
  return stubs.Objective(streams=streams, packing='concatenate', predicts_masks=True)
