"""Pairs of texts, numbers and several labels: what is read, and the losses against numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from objective_setup import byte_tokenizer, make

from flaxlm.data import packing
from flaxlm.data.pipeline import PackedItems
from flaxlm.errors import UserError
from flaxlm.objectives.marks import cut_pair

T = byte_tokenizer()
LABELS = ('x', 'y', 'z')
PAIR = {'text': 'so', 'text_pair': 'why'}


def regressor(model='encoder', **changes):
  changes = {'data__train': 'r.tsv', 'task__pair_column': 'b', **changes}
  return make('regression', model, T, 'text_regression', **changes)


def multi_labeller(**changes):
  changes = {'data__train': 'r.tsv', 'task__labels': LABELS, **changes}
  return make('multi_label', 'encoder', T, 'multi_label', **changes)


def batch_of(objective, examples):
  packed = PackedItems(objective, objective.items(examples), None)
  rows = [[objective.features(item, None) for item in packed[row]] for row in range(len(packed))]
  return packing.pack_rows(rows, objective.streams)


@pytest.mark.parametrize('separators', [1, 2])
@pytest.mark.parametrize('family', ['encoder', 'decoder', 'encoder_decoder', 'xlnet'])
def test_how_a_pair_is_written(family, separators):
  objective = regressor(family, objective__pair_separators=separators)
  (item,) = objective.items([PAIR | {'label': 1.5}])
  features = objective.features(item, None)
  first, second = T.encode('so').tolist(), T.encode('why').tolist()
  begin, middle, end = {
    'encoder': ([T.cls_id], T.sep_id, [T.sep_id]),
    'decoder': ([T.bos_id], T.sep_id, [T.eos_id]),
    'encoder_decoder': ([], T.eos_id, [T.eos_id]),
    'xlnet': ([], T.sep_id, [T.sep_id, T.cls_id]),
  }[family]
  tokens = begin + first + [middle] * separators + second + end
  key = 'encoder_inputs' if family == 'encoder_decoder' else 'inputs'
  assert features[key].tolist() == tokens
  assert objective.lengths(item)['encoder' if family == 'encoder_decoder' else 'inputs'] == len(
    tokens
  )
  place = len(tokens) - 1 if family in ('decoder', 'xlnet') else 0
  assert features['target_positions'] == place and features['target_values'] == 1.5
  assert 'token_type_ids' not in features


@pytest.mark.parametrize('ends, before, behind', [('bos_eos', 1, 1), ('bos', 1, 0), ('none', 0, 0)])
def test_a_decoder_is_read_at_the_last_token_whatever_stands_there(ends, before, behind):
  objective = regressor('decoder', objective__decoder_marks=ends)
  (item,) = objective.items([{'text': 'so', 'label': 1.5}])
  features = objective.features(item, None)
  expected = [T.bos_id] * before + T.encode('so').tolist() + [T.eos_id] * behind
  assert features['inputs'].tolist() == expected
  assert features['target_positions'].tolist() == [len(expected) - 1]
  if not before:
    with pytest.raises(UserError, match='config.objective.decoder_marks: text 0'):
      objective.items([{'text': '', 'label': 1.5}])


def test_token_types_where_the_trunk_has_them():
  objective = regressor(model__token_types=2)
  pair, single = objective.items([PAIR, {'text': 'so'}])
  assert objective.features(pair, None)['token_type_ids'].tolist() == [0] * 4 + [1] * 4
  assert objective.features(single, None)['token_type_ids'].tolist() == [0] * 4
  assert 'token_type_ids' in batch_of(objective, [PAIR])
  (pair,) = regressor('xlnet', model__token_types=3).items([PAIR])
  types = regressor('xlnet', model__token_types=3).features(pair, None)['token_type_ids']
  assert types.tolist() == [0] * 3 + [1] * 4 + [2]


@given(first=st.integers(0, 60), second=st.integers(0, 60), room=st.integers(2, 50))
def test_the_longer_text_loses_its_end_token_by_token(first, second, room):
  a, b = first, second
  while a + b > room:  # One token of the longer one at a time.
    a, b = (a - 1, b) if a > b else (a, b - 1)
  found = cut_pair(first, second, room)
  assert sum(found) == a + b == min(first + second, room)
  assert abs(found[0] - a) <= 1  # Of two equal ones either may lose the last token.


def test_a_pair_that_is_cut_keeps_its_marks_and_is_said_to_be(capsys):
  objective = regressor(model__token_types=2)
  (item,) = objective.items([{'text': 'a' * 100, 'text_pair': 'b' * 9}])
  features = objective.features(item, None)
  assert len(features['inputs']) == 64 and features['inputs'][-1] == T.sep_id
  assert T.decode(features['inputs'][features['token_type_ids'] == 1]) == 'b' * 9
  assert '1 of 1 texts do not fit config.data.max_length' in capsys.readouterr().err


def test_squared_error_of_the_labelled_texts_alone():
  objective = regressor()
  examples = [PAIR | {'label': 1.0}, PAIR | {'label': -0.5}, PAIR]
  batch = batch_of(objective, examples)
  slots = batch['target_values'].shape[1]
  outputs = np.random.default_rng(0).normal(size=(1, slots, 1)).astype(np.float32)
  totals, metrics = objective.losses(outputs, batch)
  expected = (outputs[0, 0, 0] - 1) ** 2 + (outputs[0, 1, 0] + 0.5) ** 2
  np.testing.assert_allclose(totals['loss'], expected, rtol=1e-6)
  assert objective.weights(batch)['loss'] == metrics['loss'].weight == 2
  predictions = objective.predict(outputs, batch)
  assert predictions['weights'].sum() == 3  # The one without a label is predicted too.


@pytest.mark.parametrize('threshold', [0.5, 0.2])
def test_binary_cross_entropy_of_each_label(threshold):
  objective = multi_labeller(task__threshold=threshold)
  labels = [['x', 'z'], [], ['y'], ['z', 'z']]
  examples = [{'text': 't' * i, 'label': found} for i, found in enumerate(labels)]
  examples.append({'text': 'to predict'})
  batch = batch_of(objective, examples)
  slots = batch['target_weights'].shape[1]
  rows = len(batch['inputs'])
  outputs = np.random.default_rng(0).normal(0, 2, (rows, slots, 3)).astype(np.float32)
  totals, metrics = objective.losses(outputs, batch)
  expected, right = 0.0, 0
  for row, slot in zip(*np.nonzero(batch['target_weights']), strict=True):
    true = labels[batch['example_ids'][row, slot]]
    for label, x in zip(LABELS, outputs[row, slot].astype(np.float64), strict=True):
      p = 1 / (1 + np.exp(-x))
      expected -= np.log(p if label in true else 1 - p)
      right += (p >= threshold) == (label in true)
  np.testing.assert_allclose(totals['loss'], expected, rtol=1e-5)
  assert objective.weights(batch)['loss'] == 12
  assert float(metrics['accuracy'].total) == right
  probabilities = np.asarray(objective.predict(outputs, batch)['probabilities'])
  np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-outputs)), rtol=1e-5)


def test_a_row_has_room_for_a_text_with_every_label():
  many = tuple(f'l{i}' for i in range(100))
  objective = multi_labeller(task__labels=many)
  examples = [{'text': 'a', 'label': list(many)}, {'text': 'b', 'label': ['l0']}] * 3
  batch = batch_of(objective, examples)
  assert batch['true_weights'].sum() == 303
