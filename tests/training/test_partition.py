"""What is frozen stays as it is, bit for bit, and has no state; what trains does so as before."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from flaxlm.config.tuning import TuningConfig
from flaxlm.errors import UserError
from flaxlm.paths import leaf_paths, virtual_paths
from flaxlm.training import checkpoint, loop
from flaxlm.training.partition import EVERYTHING, make_partition

PARAMS = {
  'trunk': {
    'table': jnp.arange(20.0).reshape(5, 4),
    'stack': {
      'layers': {'kernel': jnp.arange(48.0).reshape(4, 3, 4), 'bias': jnp.ones((4, 3))},
      'layers_from_1': {'scale': jnp.arange(6.0).reshape(3, 2)},
    },
  },
  'head': {'kernel': jnp.ones((4, 2)), 'bias': jnp.zeros(2)},
}


def partition(**fields):
  return make_partition(TuningConfig(**fields), PARAMS)


def trained_names(part):
  """Virtual paths of the trained tree."""
  leaves = leaf_paths(part.take(PARAMS))
  return {name for path, leaf in leaves.items() for name in virtual_paths(path, leaf)}


def test_lora_that_would_not_train_is_an_error():
  params = PARAMS | {'delta': {'head': {'kernel': {'a': jnp.ones((4, 1)), 'b': jnp.ones((1, 2))}}}}
  for pattern in ('^delta/', 'kernel'):
    config = TuningConfig(lora_rank=1, frozen=(pattern,))
    with pytest.raises(UserError, match='config.tuning.frozen: nothing of what LoRA adds'):
      make_partition(config, params)
  config = TuningConfig(lora_rank=1, lora_targets=())
  with pytest.raises(UserError, match='config.tuning.lora_targets: nothing of what LoRA adds'):
    make_partition(config, PARAMS)


def test_without_patterns_everything_trains():
  assert partition() is EVERYTHING
  assert EVERYTHING.take(PARAMS) is PARAMS
  assert EVERYTHING.count(PARAMS) == (20 + 48 + 12 + 6 + 8 + 2,) * 2


def test_single_layers_of_a_stack_train_and_keep_their_numbers():
  part = partition(trainable=('layers/[023]/', '^head/'), frozen=('head/bias', 'layers/3/scale'))
  assert trained_names(part) == {
    *(f'trunk/stack/layers/{i}/{leaf}' for i in (0, 2, 3) for leaf in ('kernel', 'bias')),
    'trunk/stack/layers/2/scale',
    'head/kernel',
  }
  trained = part.take(PARAMS)
  np.testing.assert_array_equal(
    trained['trunk']['stack']['layers_from_2']['kernel'],
    PARAMS['trunk']['stack']['layers']['kernel'][2:],
  )
  assert part.count(PARAMS)[0] == 3 * (12 + 3) + 2 + 8


def test_what_was_taken_is_put_back_and_the_rest_is_untouched():
  part = partition(frozen=('layers/1/', 'table'))
  raised = jax.tree.map(lambda leaf: leaf + 100, part.take(PARAMS))
  found, names = leaf_paths(part.put(PARAMS, raised)), trained_names(part)
  for path, leaf in leaf_paths(PARAMS).items():
    group = virtual_paths(path, leaf)
    add = np.array([100.0 * (name in names) for name in group])
    shape = (-1, *[1] * (leaf.ndim - 1)) if group != [path] else ()
    np.testing.assert_array_equal(found[path], leaf + add.reshape(shape), err_msg=path)


def test_bitfit_is_a_pattern():
  assert all(n.endswith('bias') or n.startswith('head') for n in trained_names(
    partition(trainable=('bias$', '^head/'))
  ))  # fmt: skip


@pytest.mark.parametrize(
  'fields,message',
  [
    ({'trainable': ('^haed/',)}, "config.tuning.trainable: '.haed/' matches no leaf"),
    ({'frozen': ('layers/4/',)}, "config.tuning.frozen: 'layers/4/' matches no leaf"),
    ({'frozen': ('',)}, 'no parameter would train'),
    ({'frozen': ('(',)}, 'not a regular expression'),
  ],
)
def test_patterns_that_cannot_be_meant_are_errors(fields, message):
  with pytest.raises(UserError, match=message):
    partition(**fields)


def test_the_gradient_of_the_part_is_that_part_of_the_gradient():
  part = partition(frozen=('layers/[12]/', 'table'))

  def loss(params):
    return sum((i + 1) * jnp.sum(leaf**2) for i, leaf in enumerate(jax.tree.leaves(params)))

  whole = part.take(jax.grad(loss)(PARAMS))
  alone = jax.grad(lambda trained: loss(part.put(PARAMS, trained)))(part.take(PARAMS))
  jax.tree.map(np.testing.assert_array_equal, alone, whole)


# --------------------------------------------------------------------------- in a run

FREEZE = (
  ('tuning.frozen', 'token/table,layers/0/,attention/key'),
  ('optimizer.learning_rate', '0.01'),
  ('optimizer.weight_decay', '0.5'),
  ('optimizer.decay_exclude', 'layers/1/mlp'),
)
RUN = (('total_steps', '4'), ('checkpoint.every_steps', '2'), ('evaluation.every_steps', '4'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('partition'))


@pytest.mark.full
def test_frozen_leaves_are_the_same_bits_in_the_checkpoint_and_have_no_state(
  folder, tmp_path, capsys
):
  experiment = tiny.experiment('classify.py:encoder', folder, FREEZE + RUN)
  start = checkpoint.digest(experiment.init_state().params)
  table = np.asarray(
    experiment.init_state().params['trunk']['stack']['layers']['mlp']['up']['kernel']
  )
  state = loop.fit(experiment, tmp_path)
  end = checkpoint.read_meta(tmp_path / 'checkpoints', 4)['digest']
  frozen = [p for p in start if 'token/table' in p or 'attention/key' in p]
  assert len(frozen) == 3
  for path in start:
    assert (start[path] == end[f'params/{path}']) == (path in frozen), path
  kernel = np.asarray(state.params['trunk']['stack']['layers']['mlp']['up']['kernel'])
  np.testing.assert_array_equal(kernel[0], table[0])
  assert (kernel[1] != table[1]).any()
  moments = leaf_paths(optax.tree_utils.tree_get(state.opt_state, 'mu'))
  assert moments['trunk/stack/layers_from_1/mlp/up/kernel'].shape == (1, 16, 64)
  assert not [path for path in moments if 'token/table' in path or '/layers/' in path]
  trained, total = experiment.partition.count(state.params)
  assert sum(leaf.size for leaf in moments.values()) == trained < total
  assert f'{trained:,} of {total:,} parameters train' in capsys.readouterr().err


@pytest.mark.full
def test_what_trains_is_updated_as_if_nothing_were_frozen(folder):
  """SGD without clipping: an update depends on its own gradient only; in two micro-batches too."""
  plain = (
    ('optimizer.name', 'sgd'),
    ('optimizer.clip_norm', '0'),
    ('optimizer.schedule', 'constant'),
  )
  plain += (('model.dropout_rate', '0'),)
  whole = tiny.experiment('classify.py:encoder', folder, plain)
  part = tiny.experiment(
    'classify.py:encoder', folder, (*plain, *FREEZE[:1], ('num_microbatches', '2'))
  )
  batch = whole.train_data.batch(0)
  params = tiny.random_state(whole).params
  expected, _ = whole.train_step(tiny.random_state(whole), whole.put(batch))
  found, metrics = part.train_step(tiny.random_state(part), part.put(batch))
  wanted = part.partition.put(params, part.partition.take(expected.params))
  for path, leaf in leaf_paths(wanted).items():
    actual = leaf_paths(found.params)[path]
    np.testing.assert_allclose(actual, leaf, rtol=1e-5, atol=1e-6, err_msg=path)
  assert len(metrics['leaf_norms']) == len(jax.tree.leaves(part.partition.take(params)))
