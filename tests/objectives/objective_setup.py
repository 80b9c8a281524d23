"""Objectives over documents in memory, and their rows, for the tests of this folder."""

import functools

import numpy as np

from flaxlm.config import tree
from flaxlm.data import packing
from flaxlm.data.tokenizer import Tokenizer


class Documents:
  """A token store in memory, of token ids by document."""

  def __init__(self, documents):
    self.documents = [np.asarray(tokens, np.int32) for tokens in documents]
    self.lengths = np.array([len(tokens) for tokens in documents], np.int64)
    self.num_documents = len(documents)

  def read(self, document, start, stop):
    return self.documents[document][max(start, 0) : max(stop, 0)]


def byte_tokenizer(sentinels=100):
  return Tokenizer({'name': 'bytes', 'sentinels': sentinels})


def make(name, model, tokenizer=None, task='', **changes):
  """An objective at a length of 64; keys with a double underscore reach into nodes."""
  config = tree.new(model=model, objective=name, task=task)
  for key, value in {'total_steps': 1, 'model__max_length': 64, **changes}.items():
    *nodes, leaf = key.split('__')
    functools.reduce(getattr, nodes, config)[leaf] = value
  module = tree.load_module('flaxlm.objectives', name)
  return module.Objective(tree.from_config_dict(config), tokenizer or byte_tokenizer())


def random_documents(tokenizer, lengths, seed=0):
  rng = np.random.default_rng(seed)
  first = max(tokenizer.special_ids) + 1
  return Documents([rng.integers(first, tokenizer.vocab_size, n) for n in lengths])


def rows_of(objective, store, seed=0):
  """The features of every row of an epoch."""
  rng = np.random.default_rng(seed)
  rows = packing.Concatenated(store, objective.span, objective.gap)
  for row in range(len(rows)):
    found = (objective.features(piece, rng) for piece in rows[row])
    yield [features for features in found if features is not None]


def batch_of(objective, store, seed=0):
  """All rows of an epoch, packed; what does not fit raises."""
  return packing.pack_rows(list(rows_of(objective, store, seed)), objective.streams)


def whole(store, document=0):
  return packing.Piece(store, document, 0, int(store.lengths[document]))
