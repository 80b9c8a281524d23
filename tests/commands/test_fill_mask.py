"""Where the mask of `fill-mask` stands: for the space before it only where a token holds that."""

import types

import jax.numpy as jnp
import pytest

from flaxlm.commands import fill_mask
from flaxlm.config.data import TokenizerConfig
from flaxlm.data import packing, tokenizer
from flaxlm.decoding.infill import Filler
from flaxlm.types import VocabOutput


class Echo:
  """A masked language model that is sure of the token before each mask."""

  def apply(self, variables, batch):
    before = jnp.take_along_axis(batch['inputs'], batch['target_positions'] - 1, 1)
    hidden = 9.0 * (before[..., None] == jnp.arange(400))
    return {'mlm': VocabOutput(hidden, jnp.eye(400), None, 400)}, None


def experiment_of(name):
  """With a tokenizer of this kind."""
  texts = ['the film was long and the plot was thin'] * 20
  words = tokenizer.train(TokenizerConfig(name=name, vocab_size=300, sentinels=0), texts)
  keys = ('inputs', 'token_type_ids')
  streams = {
    'inputs': packing.Stream(64, keys, prefix=''),
    'targets': packing.Stream(8, ('target_positions',)),
  }
  objective = types.SimpleNamespace(streams=streams)
  return types.SimpleNamespace(tokenizer=words, objective=objective, model=Echo())


@pytest.mark.parametrize(
  'name, before',
  [('bytes', ' '), ('sentencepiece', 'was'), ('wordpiece', 'was'), ('byte_bpe', 'was')],
)
def test_the_mask_stands_behind_what_it_replaces(name, before):
  experiment = experiment_of(name)
  words = experiment.tokenizer
  text = 'the film was [MASK] and [MASK]'
  filler = Filler(Echo(), {}, experiment.objective, words.mask_id, beams=2, candidates=3)
  found = filler.fill([fill_mask.row_of(experiment, text)])[0]
  assert len(found.positions) == 2 and found.ids.shape == (2, 3)
  likeliest = int(found.ids[0, 0])
  assert before.endswith(words.decode([likeliest]).strip(' ') or ' ')
  row = [words.cls_id, *words.encode('the film was' + ' ' * (name == 'bytes'))]
  assert found.positions[0] == len(row) and likeliest == row[-1]


@pytest.mark.parametrize('name', ['bytes', 'sentencepiece', 'wordpiece', 'byte_bpe'])
def test_a_mask_at_the_start_and_one_behind_no_space(name):
  """The word between them is read as behind another word."""
  experiment = experiment_of(name)
  words = experiment.tokenizer
  row = fill_mask.row_of(experiment, '[MASK] was[MASK]').tolist()
  before, both = words.encode('plot').tolist(), words.encode('plot was').tolist()
  assert both[: len(before)] == before
  was = both[len(before) :]
  assert row == [words.cls_id, words.mask_id, *was, words.mask_id, words.sep_id]
