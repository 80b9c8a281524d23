"""Tokenizers: the layout of ids, round trips, and that text never yields a special token."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from flaxlm.config.data import DataConfig, TokenizerConfig
from flaxlm.config.schema import Config
from flaxlm.data import splits, tokenizer, tokenizer_codecs, tokenizer_training
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError

TEXT = (
  'The quick brown fox jumps over the lazy dog.\nIt was not amused, said the dog; not at all.\n'
)
CONFIGS = {
  'unigram': TokenizerConfig(vocab_size=420, sentinels=10),
  'bpe': TokenizerConfig(vocab_size=420, sentinels=10, model_type='bpe'),
  'wordpiece': TokenizerConfig(name='wordpiece', vocab_size=120, sentinels=10),
  'byte_bpe': TokenizerConfig(name='byte_bpe', vocab_size=340, sentinels=10),
  'characters': TokenizerConfig(name='characters', sentinels=10),
  'bytes': TokenizerConfig(name='bytes', sentinels=10),
}


@pytest.fixture(scope='module', params=list(CONFIGS))
def made(request):
  return tokenizer.train(CONFIGS[request.param], [TEXT * 5])


def test_layout_of_ids(made):
  special = (made.pad_id, made.eos_id, made.unk_id, made.bos_id, made.cls_id, made.sep_id)
  assert (*special, made.mask_id) == tuple(range(7))
  assert made.sentinel_ids == tuple(range(7, 17))
  assert made.special_ids == frozenset(range(17))
  assert [made.piece(i) for i in (0, 6, 7, 16)] == [
    '<pad>',
    '[MASK]',
    '<extra_id_0>',
    '<extra_id_9>',
  ]
  with pytest.raises(IndexError):
    made.piece(made.vocab_size)


def test_words_begin_where_the_white_space_before_them_does(made):
  text = 'The dog.\nIt was the fox'
  ids = made.encode(text)
  starts = made.starts_word[ids]
  starts[0] = True
  words = [made.decode(part) for part in np.split(ids, np.flatnonzero(starts)[1:])]
  end = ['dog', '.'] if made.spec['name'] == 'wordpiece' else ['dog.']
  assert [word.strip() for word in words] == ['The', *end, 'It', 'was', 'the', 'fox']
  assert made.starts_word.shape == (made.vocab_size,) and made.starts_word[:17].all()


def test_words_begin_before_a_part_of_a_character_too():
  text = 'x \u2014 y \u201cz\u201d \u4e2d\u6587'
  made = tokenizer.train(TokenizerConfig(name='byte_bpe', vocab_size=270, sentinels=0), [text] * 9)
  ids = made.encode(text)
  starts = np.flatnonzero(made.starts_word[ids][1:]) + 1
  assert '<0x20><0xE2><0x80>' in map(made.piece, ids)
  words = [made.decode(part) for part in np.split(ids, starts)]
  assert words[:4] == ['x', ' \u2014', ' y', ' \u201cz\u201d']
  assert words[-1] == '\u6587'


def test_a_character_of_a_script_without_spaces_begins_a_word():
  made = tokenizer.train(TokenizerConfig(name='characters', sentinels=0), ['ab \u4e2d\u306e\n'])
  found = {made.piece(i) for i in np.flatnonzero(made.starts_word) if i not in made.special_ids}
  assert found == {' ', '\n', '\u4e2d', '\u306e'}


def test_round_trip(made):
  for text in [TEXT, '', ' ', '\n', '  two  spaces ', 'a\n\nb', ' lead']:
    expected = text
    if made.spec['name'] == 'characters':
      expected = ''.join(c if c in TEXT else '\ufffd' for c in text)
    ids = made.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    if made.spec['name'] == 'wordpiece':  # It knows of words, not of the space between them.
      assert made.decode(ids).split() == expected.replace(';', ' ;').split()
    else:
      assert made.decode(ids) == expected


@hypothesis.given(st.text(max_size=40).filter(lambda text: tokenizer_codecs.SPACE not in text))
@hypothesis.settings(max_examples=200, deadline=None)
@pytest.mark.parametrize('kind', ['unigram', 'byte_bpe', 'bytes'])
def test_any_text_round_trips_without_special_tokens(kind, text):
  made = _made(kind)
  ids = made.encode(text)
  assert not made.special_ids.intersection(ids.tolist())
  assert made.decode(ids) == text


_kept = {}


def _made(kind):
  if kind not in _kept:
    _kept[kind] = tokenizer.train(CONFIGS[kind], [TEXT * 5])
  return _kept[kind]


def test_names_of_special_tokens_in_text_are_text(made):
  text = 'the <extra_id_3> [MASK] </s> <pad> dog'
  ids = set(made.encode(text).tolist()) - {made.unk_id}
  assert not made.special_ids & ids


def test_no_text_yields_a_special_token_beside_others(made):
  for name in made._special_names.values():
    for text in (name, f'a{name}b', f'a {name}', name.lower(), name[1:], f'\0{name}', name * 2):
      ids = made.encode(text).tolist()
      assert not (made.special_ids - {made.unk_id}) & set(ids), (name, text)
      assert ids == made.encode_with_offsets(text)[0].tolist()


TEXTS = [
  TEXT,
  'The dog \U0001f600\U0001f600 over\u200bthe   fox.',
  ' \ttabs\x07and\x00controls\n\n',
  'D\xe9j\xe0 vu, d\xe9ja\u0300!',
  '\u65e5\u672c dog\u0130\u03a3',
  '',
]


@pytest.mark.parametrize('text', TEXTS)
def test_offsets_lead_back_into_the_text(made, text):
  ids, offsets = made.encode_with_offsets(text)
  np.testing.assert_array_equal(ids, made.encode(text))
  assert len(offsets) == len(ids)
  starts = [start for start, _ in offsets]
  assert starts == sorted(starts)
  seen = np.zeros(len(text), bool)
  for id, (start, end) in zip(ids.tolist(), offsets, strict=True):
    assert 0 <= start <= end <= len(text)
    seen[start:end] = True
    piece = text[start:end]
    assert piece == piece.strip() or not piece.strip()
    shown = made.decode([id]).strip()
    if id != made.unk_id and '\ufffd' not in shown and not shown.startswith('##'):
      assert piece.strip() == shown
    if shown.startswith('##'):
      assert piece == shown[2:]
  missed = [c for c, s in zip(text, seen, strict=True) if not s]
  assert not set(missed) - set(' \t\n\x00\x07\u200b')


# Also what lies between words: it decides where words may be cut apart before they are encoded.
BETWEEN = st.text(alphabet=" \t\n\r\x0b\x1c\x85\xa0\u3000\u200b\u0301'sdog.,!9\u4e2d", max_size=20)


@hypothesis.given(st.one_of(st.text(max_size=20), BETWEEN))
@hypothesis.settings(max_examples=200, deadline=None)
@pytest.mark.parametrize('kind', list(CONFIGS))
def test_offsets_of_any_text(kind, text):
  made = _made(kind)
  ids, offsets = made.encode_with_offsets(text)
  np.testing.assert_array_equal(ids, made.encode(text))
  assert len(offsets) == len(ids)
  assert all(0 <= start <= end <= len(text) for start, end in offsets)


def test_special_tokens_are_dropped_or_shown(made):
  ids = [made.bos_id, *made.encode('The'), made.mask_id, *made.encode('dog'), made.eos_id]
  assert made.decode(ids, keep_special=True).replace(' ', '') == '<s>The[MASK]dog</s>'
  assert made.decode(ids).replace(' ', '') == 'Thedog'
  assert made.decode([made.pad_id] * 3) == ''


def test_batches_equal_single_texts(made):
  texts = [TEXT, 'dog', '', 'The fox']
  for ids, text in zip(made.encode_batch(texts), texts, strict=True):
    np.testing.assert_array_equal(ids, made.encode(text))


def test_saved_and_loaded(made, tmp_path):
  made.save(str(tmp_path / 't'))
  loaded = Tokenizer.load(str(tmp_path / 't'))
  assert loaded.fingerprint == made.fingerprint
  np.testing.assert_array_equal(loaded.encode(TEXT), made.encode(TEXT))
  assert loaded.decode(loaded.encode(TEXT)) == made.decode(made.encode(TEXT))
  assert loaded.special_ids == made.special_ids and loaded.sentinel_ids == made.sentinel_ids


def test_a_changed_file_is_noticed(tmp_path):
  _made('unigram').save(str(tmp_path))
  tokenizer.train(CONFIGS['unigram'], ['Other words: zebra, quagga.\n' * 5]).save(
    str(tmp_path / 'other')
  )
  (tmp_path / 'tokenizer.model').write_bytes((tmp_path / 'other/tokenizer.model').read_bytes())
  with pytest.raises(UserError, match=r'tokenizer\.json'):
    Tokenizer.load(str(tmp_path))


def test_training_is_deterministic():
  for kind, config in CONFIGS.items():
    assert tokenizer.train(config, [TEXT * 5]).fingerprint == _made(kind).fingerprint


@pytest.mark.parametrize('kind', ['unigram', 'bpe', 'wordpiece', 'byte_bpe'])
def test_pieces_are_learned(kind):
  """A trained vocabulary needs far fewer tokens than bytes."""
  words = TEXT.split()
  rng = np.random.default_rng(0)
  texts = [' '.join(rng.choice(words, 12)) for _ in range(200)]
  made = tokenizer.train(CONFIGS[kind], texts)
  assert len(made.encode(texts[0])) < 0.5 * len(texts[0])


def test_characters_are_those_of_the_training_text():
  made = _made('characters')
  assert made.vocab_size == 17 + len(set(TEXT))
  assert made.encode('d§')[1] == made.unk_id
  assert made.decode(made.encode('d§')) == 'd\ufffd'


@hypothesis.given(st.text(alphabet=' \t\n\x1c\xa0ab.', max_size=12))
@hypothesis.settings(max_examples=500, deadline=None)
def test_words_are_cut_apart_only_where_nothing_is_merged(text):
  """Runs of white space are pieces of this vocabulary, whole."""
  if 'spaces' not in _kept:
    texts = ['a  \t  b\n\n   b \t\t a.\n    a\n \n \xa0 b' * 50]
    _kept['spaces'] = tokenizer.train(
      TokenizerConfig(name='byte_bpe', vocab_size=320, sentinels=0), texts
    )
  made = _kept['spaces']
  np.testing.assert_array_equal(made.encode(text), made.encode_with_offsets(text)[0])


@pytest.mark.parametrize('kind', ['unigram', 'wordpiece', 'byte_bpe'])
def test_lowercase(kind):
  made = tokenizer.train(dataclasses.replace(CONFIGS[kind], lowercase=True), [TEXT * 5])
  np.testing.assert_array_equal(made.encode('The DOG'), made.encode('the dog'))
  assert made.decode(made.encode('The DOG')) == 'the dog'


def test_vocab_size_that_does_not_fit():
  with pytest.raises(UserError, match=r'config\.tokenizer\.vocab_size: 64 is too small.*\d'):
    tokenizer.train(TokenizerConfig(vocab_size=64), [TEXT])
  assert tokenizer.train(TokenizerConfig(vocab_size=5000), [TEXT]).vocab_size < 1000
  for name, size in (('wordpiece', 120), ('byte_bpe', 300)):
    config = TokenizerConfig(name=name, vocab_size=size)
    with pytest.raises(UserError, match=rf'vocab_size: {size} is too small.*the least is') as error:
      tokenizer.train(config, [TEXT])
    least = int(str(error.value).rpartition(' ')[2])
    made = tokenizer.train(dataclasses.replace(config, vocab_size=least), [TEXT])
    assert made.vocab_size == least and made.unk_id not in made.encode('the dog')
    with pytest.raises(UserError, match='vocab_size'):
      tokenizer.train(dataclasses.replace(config, vocab_size=least - 1), [TEXT])
    with pytest.raises(UserError, match='no text'):
      tokenizer.train(config, [])


def test_the_sample_is_spread_over_the_corpus():
  texts = [f'{i:06d} ' * 20 for i in range(5000)]
  sample = tokenizer_training.spread_sample(iter(texts), 70_000)
  size = sum(map(len, sample))
  assert 35_000 <= size <= 70_000
  found = np.array([int(text[:6]) for text in sample])
  steps = np.diff(found)
  assert (steps == steps[0]).all() and steps[0] > 1
  assert found[0] == 0 and found[-1] >= 5000 - steps[0]
  assert tokenizer_training.spread_sample(iter(texts[:10]), 70_000) == texts[:10]


def test_long_documents_are_used_whole():
  """SentencePiece leaves out long sentences, so that a book would train nothing."""
  text = 'wort ' * 4000 + '\u65e5\u672c' * 4000
  chunks = tokenizer_training.spread_sample([text], 10**9)
  assert max(len(chunk.encode()) for chunk in chunks) <= 4000
  assert ''.join(chunks).replace(' ', '') == text.replace(' ', '')


def test_trained_once_and_kept(tmp_path, monkeypatch):
  (tmp_path / 'x.txt').write_text('\n\n'.join([TEXT.strip()] * 8))
  config = Config(
    data=DataConfig(train=str(tmp_path / 'x.txt'), cache_dir=str(tmp_path / 'cache')),
    tokenizer=CONFIGS['unigram'],
  )
  first = tokenizer.for_corpus(config, splits.training(config.data))
  with monkeypatch.context() as patch:
    patch.delattr(tokenizer, 'train')  # Kept: not trained again.
    again = tokenizer.for_corpus(config, splits.training(config.data))
  assert again.fingerprint == first.fingerprint
  (tmp_path / 'x.txt').write_text('\n\n'.join(['Other words entirely: zebra, quagga.'] * 8))
  other = tokenizer.for_corpus(config, splits.training(config.data))
  assert other.fingerprint != first.fingerprint
  first.save(str(tmp_path / 'saved'))
  path = dataclasses.replace(
    config, tokenizer=dataclasses.replace(config.tokenizer, path=str(tmp_path / 'saved'))
  )
  assert tokenizer.for_corpus(path, splits.training(config.data)).fingerprint == first.fingerprint


def test_a_number_of_sentinels_that_a_vocabulary_does_not_take_is_an_error(tmp_path):
  def load(sentinels, add=()):
    options = TokenizerConfig(path=str(tmp_path), sentinels=sentinels, add=add)
    return tokenizer.for_corpus(Config(tokenizer=options), None)

  tokenizer.train(CONFIGS['characters'], [TEXT]).save(tmp_path)
  for number in (10, 0, 100):  # Its own; those of recipes, for a tokenizer that they would train.
    assert len(load(number).sentinel_ids) == 10
  with pytest.raises(UserError, match='tokenizer.sentinels: would do nothing: .* keeps its 10,'):
    load(7)
  tokenizer.train(dataclasses.replace(CONFIGS['bytes'], sentinels=0), []).save(tmp_path)
  assert len(load(7, ('sentinels',)).sentinel_ids) == 7


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('characters.json', None),
    ('characters.json', '['),
    ('characters.json', '["a"]'),
    ('tokenizer.json', '{"name": "letters", "fingerprint": ""}'),
    ('tokenizer.json', '{"fingerprint": ""}'),
    ('tokenizer.json', '{"name": "characters", "sentinels": "3", "fingerprint": ""}'),
  ],
)
def test_a_folder_that_was_changed_is_named(tmp_path, name, content):
  tokenizer.train(TokenizerConfig(name='characters'), ['abc']).save(tmp_path)
  (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
  with pytest.raises(UserError, match=f'{tmp_path}: its files are not those'):
    tokenizer.Tokenizer.load(tmp_path)
