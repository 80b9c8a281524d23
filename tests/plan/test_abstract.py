"""Experiments of shapes: the same state, batch and step that train.py builds from data."""

import dataclasses

import jax
import pytest
import tiny

from flaxlm.config import recipe
from flaxlm.errors import UserError
from flaxlm.plan import abstract, sizes

pytestmark = pytest.mark.usefixtures('in_the_checkout')
SMALL = {'model.num_layers': 2, 'model.emb_dim': 16, 'model.num_heads': 2, 'model.max_length': 32}


def load(place, **changes):
  overrides = {**SMALL, **{key.replace('__', '.'): str(value) for key, value in changes.items()}}
  return recipe.load(f'configs/{place}', [(key, str(value)) for key, value in overrides.items()])


@pytest.mark.parametrize(
  'place', ['gpt2.py:mini', 'bert.py:mini', 't5.py:mini', 'xlnet.py:mini', 'classify.py:encoder']
)
def test_shapes_are_those_of_a_run(place, tmp_path):
  """Of a run whose tokenizer was trained and whose rows were read."""
  folder = tiny.write_corpus(tmp_path / 'data')
  real = tiny.experiment(place, folder)
  task = dataclasses.replace(real.config.task, labels=()) if real.config.task.name else None
  config = dataclasses.replace(real.config, **({'task': task} if task else {}))
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, train='/nowhere'))
  planned = abstract.experiment(config, real.tokenizer.vocab_size)
  assert planned.abstract_state == real.abstract_state
  shape = lambda x: (x.shape, x.dtype)
  batch = real.train_data.batch(0)
  assert jax.tree.map(shape, abstract.batch(planned)) == jax.tree.map(shape, dict(batch))


def test_sizes_of_a_decoder():
  """Counted by hand: 2 layers of 12 D^2 and their biases and norms, tables of V, 32 and D."""
  built = abstract.experiment(load('gpt2.py:mini', global_batch_size=8), vocab_size=300)
  found = sizes.of(built)
  layer = 12 * 16**2 + (4 + 4 + 1) * 16 + 4 * 16
  trunk = 2 * layer + (300 + 32) * 16 + 2 * 16
  assert found.parameters == found.trunk_parameters == trunk
  stored = trunk + (384 - 300) * 16
  assert found.parameter_bytes == found.parameter_bytes_per_device == 4 * stored
  assert found.optimizer_bytes == 8 * stored + 8
  assert found.tokens_per_step == 8 * 32
  products = 2 * 12 * 16**2 + 16 * 384 + 2 * 2 * 32 * 16
  assert found.model_flops_per_step == 6 * 8 * 32 * products


def test_a_head_without_a_vocabulary_counts_no_logits():
  built = abstract.experiment(load('classify.py:encoder', data__train='none.tsv'), 300)
  found = sizes.of(built)
  rows, length = abstract.batch(built)['inputs'].shape
  # Two layers of projections and of attention.
  assert found.model_flops_per_step == 6 * rows * length * 2 * (12 * 16**2 + 2 * length * 16)


def test_both_passes_of_r_drop_count_and_what_is_frozen_is_said():
  changes = {'data__train': 'none.tsv', 'model__dropout_rate': 0.1}
  whole = sizes.of(abstract.experiment(load('classify.py:encoder', **changes), 300))
  assert whole.trained_parameters is None
  changes |= {'tuning__r_drop': 1.0, 'tuning__trainable': 'head/'}
  built = abstract.experiment(load('classify.py:encoder', **changes), 300)
  found = sizes.of(built)
  assert found.model_flops_per_step == 2 * whole.model_flops_per_step
  leaves = jax.tree.leaves(built.abstract_state.params['head'])
  assert found.trained_parameters == sum(leaf.size for leaf in leaves)
  assert found.parameters == whole.parameters


def test_what_only_text_tells():
  config = load('nanogpt_char.py')
  with pytest.raises(UserError, match='--vocab-size=N'):
    abstract.experiment(config)
  assert abstract.experiment(config, 65).config.model.vocab_size == 65
  for size in (-5, 0, 7):
    with pytest.raises(UserError, match=f'--vocab-size: {size} pieces, of which 7 are special'):
      abstract.tokenizer(config.tokenizer, size)
  assert (
    abstract.experiment(load('gpt2.py:mini', tokenizer__name='bytes')).tokenizer.vocab_size > 256
  )
