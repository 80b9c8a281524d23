"""Augmented texts: their words, how often they change, and that only training sees them."""

import types

import numpy as np
import pytest
import stubs
import tiny

from flaxlm.config.data import DataConfig
from flaxlm.data.augment import Augmentation
from flaxlm.errors import UserError

MASK = 99
# Ids below 50 begin a word, others go on with it.
TOKENIZER = types.SimpleNamespace(starts_word=np.arange(100) < 50, mask_id=MASK)
OBJECTIVE = stubs.Objective(augmented=('tokens', 'pair'), tokenizer=TOKENIZER)
TEXT = np.array([1, 60, 61, 2, 3, 70, 4, 5, 80, 6], np.int32)
WORDS = [(1, 60, 61), (2,), (3, 70), (4,), (5, 80), (6,)]


def draw(rates, seeds=300, tokens=TEXT):
  augment = Augmentation(DataConfig(**rates), OBJECTIVE, 'classification')
  item = {'tokens': tokens, 'pair': None, 'label': 7}
  found = [augment(item, np.random.default_rng(seed)) for seed in range(seeds)]
  assert all(f['label'] == 7 and f['pair'] is None for f in found)
  assert item['tokens'] is tokens
  return [f['tokens'] for f in found]


def words(tokens):
  begins = [i for i, t in enumerate(tokens) if t < 50] + [len(tokens)]
  return [tuple(tokens[a:b]) for a, b in zip(begins, begins[1:], strict=False)]


def test_words_are_dropped_whole_and_in_order_at_the_rate():
  found = [words(tokens) for tokens in draw({'word_drop': 0.3})]
  for kept in found:
    assert kept and [word for word in WORDS if word in kept] == kept
  np.testing.assert_allclose(np.mean([len(kept) for kept in found]), 0.7 * 6, atol=0.2)


def test_what_a_task_puts_round_a_text_is_not_augmented():
  Augmentation(DataConfig(word_drop=0.1), OBJECTIVE, 'classification').check([{'source': 'a'}], '')
  writing = stubs.Objective(augmented=('source',), tokenizer=TOKENIZER)
  augment = Augmentation(DataConfig(word_drop=0.1), writing, 'seq2seq')
  plain, prefixed = {'text': 'a'}, {'text': 'a', 'source': 'summarize: a'}
  augment.check([plain, {'text': 'a', 'source': 'a'}], '')
  Augmentation(DataConfig(), writing, 'seq2seq').check([prefixed], 'summarize: ')
  for rows, prefix in (([plain, prefixed], ''), ([plain], 'summarize: ')):
    with pytest.raises(UserError, match='word_drop.*would also change what the task puts round'):
      augment.check(rows, prefix)


def test_a_word_stays():
  assert {len(words(t)) for t in draw({'word_drop': 0.999})} == {1}
  assert len({words(t)[0] for t in draw({'word_drop': 0.999})}) > 3


def test_swapping_keeps_the_words():
  found = [words(tokens) for tokens in draw({'word_swap': 0.2})]
  assert all(sorted(w) == sorted(WORDS) for w in found)
  # A text is unchanged if none of its five pairs is exchanged.
  np.testing.assert_allclose(np.mean([w == WORDS for w in found]), 0.8**5, atol=0.07)


def test_masks_take_the_place_of_every_token_of_a_word():
  found = draw({'word_mask': 0.25})
  sizes = [len(word) for word in WORDS]
  for tokens in found:
    assert len(tokens) == len(TEXT)
    parts = np.split(tokens, np.cumsum(sizes)[:-1])
    for part, word in zip(parts, WORDS, strict=True):
      assert tuple(part) == word or set(part) == {MASK}
  np.testing.assert_allclose(np.mean([t == MASK for t in found]), 0.25, atol=0.03)


def test_a_single_word_and_an_empty_text():
  rates = {'word_drop': 0.5, 'word_swap': 0.5}
  assert all(list(t) == [3] for t in draw(rates, 5, np.array([3], np.int32)))
  assert not any(len(t) for t in draw(rates, 5, np.zeros(0, np.int32)))


def test_labels_that_belong_to_words_forbid_it():
  with pytest.raises(UserError, match="config.data.word_swap: the labels of 'tagging'"):
    Augmentation(DataConfig(word_swap=0.1), stubs.Objective(), 'tagging')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('augment'))


@pytest.mark.parametrize('place', ['classify.py:encoder', 'text_to_text.py:encoder_decoder'])
def test_only_training_batches_change_and_every_epoch_otherwise(place, folder):
  plain = tiny.experiment(place, folder)
  changed = tiny.experiment(place, folder, (('data.word_drop', '0.3'), ('data.word_swap', '0.2')))
  name = next(iter(plain.eval_data))
  for key, value in plain.eval_data[name].batch(0).items():
    np.testing.assert_array_equal(value, changed.eval_data[name].batch(0)[key])
  key = 'inputs' if 'inputs' in plain.train_data.batch(0) else 'encoder_inputs'
  assert (plain.train_data.batch(0)[key] != changed.train_data.batch(0)[key]).any()
  targets = plain.train_data.batch(0)['targets'], changed.train_data.batch(0)['targets']
  np.testing.assert_array_equal(*targets)
  again = tiny.experiment(place, folder, (('data.word_drop', '0.3'), ('data.word_swap', '0.2')))
  np.testing.assert_array_equal(changed.train_data.batch(5)[key], again.train_data.batch(5)[key])
