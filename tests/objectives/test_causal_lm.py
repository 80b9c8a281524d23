"""Causal language modelling: every token of every document is a target once in an epoch."""

import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from objective_setup import batch_of, byte_tokenizer, make, random_documents

from flaxlm.errors import UserError

lengths = st.lists(st.integers(0, 90), min_size=1, max_size=12).filter(any)


def in_order(batch, key):
  """The values of a key that are not padding, row by row."""
  return batch[key][batch['segment_ids'] > 0]


@hypothesis.given(lengths, st.integers(8, 40))
def test_an_epoch_predicts_every_token_and_every_end_once(lengths, max_length):
  objective = make('causal_lm', 'decoder', data__max_length=max_length)
  store, t = random_documents(objective.tokenizer, lengths), objective.tokenizer
  batch = batch_of(objective, store)
  documents = [document for document in store.documents if len(document)]
  targets = np.concatenate([[*document, t.eos_id] for document in documents])
  inputs = np.concatenate([[t.bos_id, *document] for document in documents])
  np.testing.assert_array_equal(in_order(batch, 'targets'), targets)
  np.testing.assert_array_equal(in_order(batch, 'inputs'), inputs)
  np.testing.assert_array_equal(batch['target_weights'], batch['segment_ids'] > 0)
  # Rows are full: nothing is lost to padding but the end of the last.
  assert batch['inputs'].shape == (-(-len(targets) // max_length), max_length)


@hypothesis.given(lengths.filter(lambda n: max(n) > 1), st.integers(8, 40))
def test_bare_text_has_no_marks_and_no_pair_across_documents(lengths, max_length):
  objective = make('causal_lm', 'decoder', data__max_length=max_length, objective__boundaries=False)
  store = random_documents(objective.tokenizer, lengths)
  batch = batch_of(objective, store)
  pairs = [pair for d in store.documents for pair in zip(d[:-1], d[1:], strict=True)]
  found = zip(in_order(batch, 'inputs'), in_order(batch, 'targets'), strict=True)
  assert list(found) == pairs


def test_positions_restart_with_each_piece_and_segments_tell_them_apart():
  objective = make('causal_lm', 'decoder', data__max_length=8)
  batch = batch_of(objective, random_documents(objective.tokenizer, [3, 10]))
  assert batch['segment_ids'].tolist() == [[1] * 4 + [2] * 4, [1] * 7 + [0]]
  assert batch['positions'].tolist() == [[*range(4), *range(4)], [*range(7), 0]]
  # The second row goes on within a document: no BOS, and its first input is the last target.
  assert batch['inputs'][1, 0] == batch['targets'][0, -1] != objective.tokenizer.bos_id


@pytest.mark.parametrize('boundaries', [True, False])
def test_the_weight_is_the_number_of_targets(boundaries):
  objective = make('causal_lm', 'decoder', objective__boundaries=boundaries)
  batch = batch_of(objective, random_documents(byte_tokenizer(), [30, 100, 5]))
  assert objective.weights(batch)['loss'] == (135 + 3 if boundaries else 135 - 3)


def test_bare_text_goes_on_from_a_token_at_least():
  objective = make('causal_lm', 'decoder', objective__boundaries=False)
  assert len(objective.prompt('').inputs) == 1
  # Some tokenizers have none for white space.
  objective.tokenizer = types.SimpleNamespace(encode=lambda text: np.zeros(0, np.int32))
  with pytest.raises(UserError, match='a text without tokens; .*objective.boundaries=False'):
    objective.prompt('')
