"""Models of every family, small enough for tests, and batches of documents for them."""

import flax.linen as nn
import jax
import numpy as np

from flaxlm.config.transformer import TransformerConfig
from flaxlm.config.tree import load_module
from flaxlm.data import packing
from flaxlm.models.model import Model
from flaxlm.objectives.next_token import Head

FAMILIES = ('encoder', 'decoder', 'encoder_decoder')
LENGTH = 24


def config_of(family, **changes):
  defaults = dict(
    name=family, num_layers=2, emb_dim=16, num_heads=4, num_kv_heads=2, max_length=LENGTH,
    vocab_size=40, init_std=0.3,
  )  # fmt: skip
  return TransformerConfig(**(defaults | changes))


def model_of(config):
  return Model(load_module('flaxlm.models', config.name).Trunk(config), Head(config))


def streams_of(family):
  keys = ('targets', 'target_weights')
  if family == 'encoder_decoder':
    return {
      'encoder': packing.Stream(LENGTH, ('encoder_inputs',), prefix='encoder_'),
      'decoder': packing.Stream(LENGTH, ('decoder_inputs', *keys), prefix='decoder_'),
    }
  return {'inputs': packing.Stream(LENGTH, ('inputs', *keys), prefix='')}


def document(family, seed, size=7):
  rng = np.random.default_rng(seed)
  draw = lambda n: rng.integers(1, 40, n).astype(np.int32)
  item = {'targets': draw(size), 'target_weights': np.ones(size, np.float32)}
  if family == 'encoder_decoder':
    return item | {'encoder_inputs': draw(size + 1), 'decoder_inputs': draw(size)}
  return item | {'inputs': draw(size)}


def hidden(model, params, family, rows):
  batch = packing.pack_rows(rows, streams_of(family))
  return np.asarray(jax.jit(model.apply)({'params': params}, batch)[1].hidden)


def setup(family, **changes):
  """(model, parameters); drawn here, not by `init`, which takes longer to compile than to test."""
  model = model_of(config_of(family, **changes))
  batch = packing.pack_rows([[document(family, 0)]], streams_of(family))
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batch)['params'])
  rng = np.random.default_rng(0)

  # Biases and norm scales away from 0 and 1, so that every leaf matters.
  def draw(path, leaf):
    noise = rng.normal(0, 0.3, leaf.shape).astype(np.float32)
    return noise / 3 + 1 if path[-1].key == 'scale' else noise

  return model, jax.tree_util.tree_map_with_path(draw, shapes)
