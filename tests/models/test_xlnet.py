"""XLNet: who sees whom in the two streams and the memory."""

import functools
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny

from flaxlm.errors import UserError
from flaxlm.evaluation import evaluator
from flaxlm.models import xlnet
from flaxlm.training import loop

V, D, ROW = 40, 16, 12


@functools.cache
def setup(**changes):
  """(trunk, parameters away from 0, its compiled call)."""
  defaults = dict(
    name='xlnet', num_layers=2, emb_dim=D, num_heads=2, max_length=ROW, vocab_size=V,
    position='transformer_xl', token_types=3, norm_placement='post', attention_bias=False,
  )  # fmt: skip
  trunk = xlnet.Trunk(xlnet.Config(**(defaults | changes)))
  batch = row([text(0, 5)])
  shapes = nn.unbox(jax.eval_shape(trunk.init, jax.random.key(0), batch)['params'])
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
  return trunk, params, jax.jit(trunk.apply)


def run(batch, memory=None, **changes):
  """(hidden states, memory) of a batch."""
  _, params, apply = setup(**changes)
  output = apply({'params': params}, batch, cache=memory)
  return np.asarray(output.hidden), output.cache


def text(seed, size, targets=(), continues=0):
  """A document, or the part of one: `targets` are its places to predict, in their order."""
  rng = np.random.default_rng(seed)
  order = np.zeros(size, np.int32)
  order[list(targets)] = 1 + np.arange(len(targets))
  return {
    'inputs': rng.integers(1, V, size),
    'token_type_ids': rng.integers(0, 3, size),
    'order': order,
    'continues': np.full(size, continues),
    'targets': np.array(targets, np.int64),
  }


def row(texts, streams=2):
  """A batch of one row, padded to ROW places and 4 targets."""
  keys = ('inputs', 'token_type_ids', 'order', 'continues')
  batch = {key: np.concatenate([t[key] for t in texts]) for key in keys}
  sizes = [len(t['inputs']) for t in texts]
  starts = np.cumsum([0, *sizes[:-1]])
  batch['segment_ids'] = np.repeat(np.arange(1, len(texts) + 1), sizes)
  batch['positions'] = np.concatenate([np.arange(size) for size in sizes])
  pad = lambda x, n: np.pad(x, (0, n - len(x)))[None].astype(np.int32)
  batch = {key: pad(value, ROW) for key, value in batch.items()}
  places = np.concatenate([t['targets'] + at for t, at in zip(texts, starts, strict=True)])
  batch['target_positions'] = pad(places, 4)
  if streams == 1:
    del batch['order']
  return batch


def changed(batch, place):
  """Another token there."""
  inputs = batch['inputs'].copy()
  inputs[0, place] = inputs[0, place] % (V - 1) + 1
  return {**batch, 'inputs': inputs}


def test_a_query_sees_what_is_before_it_in_the_order_and_never_itself():
  targets = (7, 2, 5, 3)  # In this order.
  batch = row([text(1, 10, targets)])
  base, _ = run(batch)
  for number, place in enumerate(targets):
    found, _ = run(changed(batch, place))
    differs = np.abs(found - base).max(-1)[0] > 0
    np.testing.assert_array_equal(differs, np.arange(4) > number)
  for place in set(range(10)) - set(targets):
    found, _ = run(changed(batch, place))
    assert (np.abs(found - base).max(-1) > 0).all()


def test_content_sees_itself_and_without_an_order_everything():
  batch = row([text(1, 10)], streams=1)
  base, _ = run(batch)
  assert base.shape == (1, ROW, D)
  for place in (0, 4, 9):
    found, _ = run(changed(batch, place))
    assert (np.abs(found - base).max(-1)[0, :10] > 0).all()


@pytest.mark.parametrize('position', ['transformer_xl', 'rope', 'learned', 't5_bias', 'alibi'])
@pytest.mark.parametrize('streams', [1, 2])
def test_packed_equals_alone(position, streams):
  first, second, other = text(1, 5, (3, 1)), text(2, 6, (0, 4)), text(3, 5, (2, 0))
  packed, _ = run(row([first, second], streams), position=position)
  alone, _ = run(row([second], streams), position=position)
  neighbour, _ = run(row([other, second], streams), position=position)
  if streams == 2:
    packed, neighbour, alone = packed[0, 2:4], neighbour[0, 2:4], alone[0, :2]
  else:
    packed, neighbour, alone = packed[0, 5:11], neighbour[0, 5:11], alone[0, :6]
  np.testing.assert_array_equal(packed, neighbour)
  # Sums over other padding may round otherwise.
  np.testing.assert_allclose(packed, alone, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('position', ['transformer_xl', 'rope', 't5_bias', 'alibi'])
def test_one_row_with_its_memory_is_one_long_row(position):
  """Of one layer, with nothing to predict: the second half sees the first as if it stood before."""
  whole = text(1, ROW)
  part = lambda a, b, goes_on: (
    {
      key: np.full(b - a, goes_on) if key == 'continues' else value[a:b]
      for key, value in whole.items()
      if key != 'targets'
    }
    | {'targets': np.zeros(0, np.int64)}
  )
  options = dict(num_layers=1, memory_length=ROW // 2, position=position, token_types=0)
  trunk, _, _ = setup(**options)
  # A later half has no part in what the earlier remembers: layer 0 remembers embeddings.
  half = ROW // 2
  first = {k: v[:, :half] for k, v in row([part(0, half, 0)], 1).items()}
  second = {k: v[:, :half] for k, v in row([part(half, ROW, 1)], 1).items()}
  _, memory = run(first, trunk.empty_memory(1), **options)
  found, _ = run(second, memory, **options)
  expected, _ = run(row([part(0, ROW, 0)], 1), None, **options)
  np.testing.assert_allclose(found[0], expected[0, half:], rtol=2e-5, atol=2e-5)


def test_only_the_document_that_goes_on_sees_the_memory():
  options = dict(memory_length=20)  # More than a row, so that two are remembered.
  trunk, _, _ = setup(**options)
  empty = trunk.empty_memory(1)
  before = [row([text(1, 5, (1,)), text(2, 7, (3,))]), row([text(5, 12, (4,), continues=1)])]
  after = row([text(3, 6, (2, 0), continues=1), text(4, 6, (1, 5))])

  def remembered(rows):
    memory = empty
    for batch in rows:
      _, memory = run(batch, memory, **options)
    return memory

  base, _ = run(after, remembered(before), **options)
  nothing, _ = run(after, empty, **options)
  none, _ = run(after, None, **options)
  np.testing.assert_allclose(nothing, none, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(base[0, 2:], nothing[0, 2:])  # The second text is new.
  assert (np.abs(base - nothing)[0, :2].max(-1) > 1e-3).all()
  # Of the first row, the part of the same document is seen, and nothing of the one before.
  for place, seen in ((2, False), (8, True)):
    found, _ = run(after, remembered([changed(before[0], place), before[1]]), **options)
    assert (np.abs(found - base)[0, :2].max() > 0) == seen
  # A document that does not go on sees nothing, though the row before was full.
  fresh = {**after, 'continues': np.zeros_like(after['continues'])}
  found, _ = run(fresh, remembered(before), **options)
  np.testing.assert_array_equal(found, nothing)


def test_no_gradient_flows_into_the_memory():
  options = dict(memory_length=4)
  trunk, params, _ = setup(**options)
  first, second = row([text(1, 12, (3,))]), row([text(2, 12, (5,), continues=1)])
  _, memory = run(first, trunk.empty_memory(1), **options)

  def total(params, hidden):
    output = trunk.apply({'params': params}, second, cache=memory.replace(hidden=hidden))
    return output.hidden[0, 0].sum(), output.cache.hidden

  reach = jax.jit(jax.grad(lambda h: total(params, h)[0]))(memory.hidden)
  assert np.abs(reach).max() > 0  # It is read,
  kept = jax.jit(jax.grad(lambda p: total(p, memory.hidden)[1].sum()))(params)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(kept))  # and handed on as a constant.


def test_rows_of_a_run_go_on_and_the_memory_is_kept(tmp_path):
  """Each row of a step follows that of the step before, whose end the state remembers."""
  experiment = tiny.experiment('xlnet.py:mini', tiny.write_corpus(tmp_path))
  length = experiment.config.model.memory_length
  state = tiny.random_state(experiment)
  went_on = 0
  for step in range(4):
    batch = experiment.train_data.batch(step)
    goes_on = batch['continues'][:, 0] != 0
    ended_open = np.asarray(state.extras['memory'].is_open).any(1)
    if step:
      assert not (goes_on & ~ended_open).any()
      went_on += goes_on.sum()
    table = np.array(state.params['trunk']['token']['table'])
    state, _ = experiment.train_step(state, experiment.put(batch))
    # What the first layer attends to, and remembers, are the embeddings of the row's last tokens.
    memory = state.extras['memory']
    assert memory.hidden.shape[1] == experiment.config.model.num_layers
    np.testing.assert_array_equal(memory.hidden[:, 0], table[batch['inputs'][:, -length:]])
  assert went_on


def test_a_mixture_remembers_as_its_members(tmp_path):
  changes = (
    ('objective.name', 'mixture'), ('objective.members', 'a=permutation_lm,b=permutation_lm'),
    ('objective.settings', 'b.longest_span=1'),
  )  # fmt: skip
  experiment = tiny.experiment('xlnet.py:mini', tiny.write_corpus(tmp_path), changes)
  state = tiny.random_state(experiment)
  for step in range(2):
    state, _ = experiment.train_step(state, experiment.put(experiment.train_data.batch(step)))
  assert np.any(state.extras['memory'].hidden)


@pytest.mark.parametrize(
  'change, message',
  [
    (('objective.name', 'masked_lm'), "would do nothing: 'masked_lm' keeps no memory"),
    (('model.position', 'learned'), 'would have the positions of this one'),
  ],
)
def test_a_memory_that_would_not_be_one_is_an_error(tmp_path, change, message):
  with pytest.raises(UserError, match=f'config.model.memory_length: .*{message}'):
    tiny.experiment('xlnet.py:mini', tiny.write_corpus(tmp_path), (change,))


@pytest.mark.full
def test_an_evaluation_remembers_too(tmp_path):
  """Its loss is that of the streams one by one, each from an empty memory to the last row."""
  folder = tiny.write_corpus(tmp_path)
  changes = (('evaluation.batch_size', '3'), ('model.memory_length', str(tiny.LENGTH)))
  experiment = tiny.experiment('xlnet.py:mini', folder, changes)
  data, trunk = experiment.eval_data['validation'], experiment.model.trunk
  params = tiny.random_state(experiment).params
  rows = len(data.rows)
  assert rows % 3  # The last stream ends before the others.
  marks = list(experiment.tokenizer.special_ids)
  apply = jax.jit(
    lambda batch, memory: experiment.model.apply({'params': params}, batch, cache=memory)
  )
  total = weight = went_on = forgotten = 0
  for stream in range(3):
    memory = trunk.empty_memory(1)
    for number in range(len(data)):
      batch = {key: values[stream : stream + 1] for key, values in data.batch(number).items()}
      row = stream * len(data) + number
      if row >= rows:
        assert not batch['segment_ids'].any()
        continue
      pieces = data.rows[row]
      text = np.concatenate([piece.read(piece.start, piece.stop) for piece in pieces])
      np.testing.assert_array_equal(batch['inputs'][~np.isin(batch['inputs'], marks)], text)
      went_on += bool(number and pieces[0].start)
      outputs, after = apply(batch, memory)
      mean = experiment.objective.losses(outputs, batch)[1]['loss']
      total, weight, memory = total + mean.total, weight + mean.weight, after.cache
      alone = experiment.objective.losses(apply(batch, trunk.empty_memory(1))[0], batch)
      forgotten += alone[1]['loss'].total
  assert went_on
  found = evaluator.evaluate(experiment, params, 'validation').metrics['loss']
  np.testing.assert_allclose(found, total / weight, rtol=1e-5)
  assert abs(found - forgotten / weight) > 1e-3


@pytest.mark.full
def test_a_run_that_is_resumed_remembers_what_it_would_have(tmp_path):
  """Bit for bit: parameters, losses and memory of a run that was stopped half way."""
  folder = tiny.write_corpus(tmp_path / 'text')
  changes = (('optimizer.schedule', 'constant'), ('logging.every_steps', '1'))

  def run(workdir, steps):
    config = tiny.load('xlnet.py:mini', folder, (*changes, ('total_steps', str(steps))))
    return loop.fit(tiny.build(config, workdir), workdir)

  def losses(workdir):
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [line['loss'] for line in lines if line['split'] == 'train']

  whole = run(tmp_path / 'whole', 4)
  run(tmp_path / 'parts', 2)
  parts = run(tmp_path / 'parts', 4)
  jax.tree.map(np.testing.assert_array_equal, whole, parts)
  assert np.any(whole.extras['memory'].is_open)
  assert losses(tmp_path / 'whole') == losses(tmp_path / 'parts')
