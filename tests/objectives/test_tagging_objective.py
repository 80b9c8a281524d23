"""Every word has its label at its own piece, however it is cut and packed."""

import numpy as np
import pytest
from objective_setup import byte_tokenizer, make

from flaxlm.config.data import TokenizerConfig
from flaxlm.data import packing
from flaxlm.data import tokenizer as tokenizers
from flaxlm.data.pipeline import PackedItems
from flaxlm.objectives.tagging import parts, word_pieces

T = byte_tokenizer()
LABELS = ('a', 'b', 'c')


def tagger(model='encoder', tokenizer=T, **changes):
  changes = {'data__train': 'r.tsv', 'task__labels': LABELS, **changes}
  return make('tagging', model, tokenizer, 'tagging', **changes)


def sentence(words):
  return {'text': ' '.join(words), 'words': words, 'label': [LABELS[len(w) % 3] for w in words]}


def drawn(number, rng, longest=25):
  letters = list('abcdefgh')
  word = lambda: ''.join(rng.choice(letters, rng.integers(1, 9)))
  return [sentence([word() for _ in range(rng.integers(1, longest))]) for _ in range(number)]


@pytest.mark.parametrize('piece', ['first', 'last'])
def test_every_word_of_every_sentence_is_there_once(piece):
  objective = tagger(objective__piece=piece)
  examples = drawn(30, np.random.default_rng(0))
  packed = PackedItems(objective, objective.items(examples), 0)
  rows = [[objective.features(item, None) for item in packed[row]] for row in range(len(packed))]
  batch = packing.pack_rows(rows, objective.streams)
  found = set()
  for row, slot in zip(*np.nonzero(batch['example_weights']), strict=True):
    number, place = int(batch['example_ids'][row, slot]), int(batch['word_ids'][row, slot])
    found.add((number, place))
    word = examples[number]['words'][place]
    assert LABELS[batch['targets'][row, slot]] == examples[number]['label'][place]
    letter = word[0] if piece == 'first' else word[-1]
    assert T.decode([batch['inputs'][row, batch['target_positions'][row, slot]]]) == letter
  assert len(found) == batch['example_weights'].sum()
  assert found == {(n, i) for n, e in enumerate(examples) for i in range(len(e['words']))}
  assert len(packed.items) > len(examples)  # Some sentences were cut.
  assert objective.weights(batch)['loss'] == len(found)


@pytest.mark.parametrize('kind', ['wordpiece', 'byte_bpe', 'sentencepiece', 'characters'])
def test_pieces_of_words_are_those_of_the_sentence(kind):
  rng = np.random.default_rng(0)
  texts = [example['text'] for example in drawn(300, rng)]
  config = TokenizerConfig(name=kind, vocab_size=330, sentinels=0)
  tokenizer = tokenizers.train(config, texts)
  for words in (texts[0].split(), ['caf\u00e9', '\u4e16\u754c', 'x.y', '...', '\U0001f600']):
    pieces = word_pieces(tokenizer, words)
    assert len(pieces) == len(words)
    joined = [id for ids, _ in pieces for id in ids]
    assert joined == tokenizer.encode(' '.join(words)).tolist()
    for word, (ids, first) in zip(words, pieces, strict=True):
      text = tokenizer.decode(ids).strip()
      assert text.replace('\ufffd', '') in word or text == word
      assert tokenizer.decode(ids[:first]).strip() == ''


def test_a_word_that_the_tokenizer_drops_is_unknown_and_keeps_its_label():
  tokenizer = tokenizers.train(TokenizerConfig(name='wordpiece', sentinels=0), ['ab cd ' * 50])
  pieces = word_pieces(tokenizer, ['ab', '\u200b\u0007', 'cd'])
  assert [len(ids) for ids, _ in pieces][1] == 1
  assert pieces[1] == ([tokenizer.unk_id], 0)


def test_long_sentences_are_cut_between_words():
  assert parts([3, 3, 3], 6) == [(0, 2), (2, 3)]
  assert parts([9, 1, 1], 6) == [(0, 1), (1, 3)]
  assert parts([2], 6) == [(0, 1)]


def test_a_word_longer_than_a_row_loses_its_end_and_that_is_said(capsys):
  objective = tagger()
  items = objective.items([sentence(['x' * 100, 'y'])])
  assert [len(item['tokens']) for item in items] == [62, 2]
  assert ' words do not fit' in capsys.readouterr().err


def test_words_without_tags_are_predicted_and_cost_nothing():
  objective = tagger()
  items = objective.items([{'text': 'a b', 'words': ['a', 'b']}, sentence(['abc'])])
  rows = [[objective.features(item, None) for item in items]]
  batch = packing.pack_rows(rows, objective.streams)
  assert batch['target_weights'].sum() == 1 and batch['example_weights'].sum() == 3
  logits = np.zeros((1, batch['targets'].shape[1], 3), np.float32)
  logits[..., 1] = 1.0
  predictions = objective.predict(logits, batch)
  assert predictions['weights'].sum() == 3 and (np.asarray(predictions['predicted']) == 1).all()
  loss = objective.losses(logits, batch)[0]['loss']
  np.testing.assert_allclose(loss, np.log(2 + np.e), rtol=1e-6)
