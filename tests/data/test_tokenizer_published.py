"""Published vocabularies: their ids and roles stand; what they lack is told, or added on demand."""

import json
import re

import numpy as np
import pytest
import sentencepiece
import tokenizers

from flaxlm.data import tokenizer
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError

WORDS = ['the', 'quick', 'brown', 'fox', 'jump', '##s', '##ed', '.', ',', 'a', '##b', '\u4e2d']
TEXT = 'The quick brown fox jumps over the lazy dog, says the lazy fox. ' * 5


def write_bert(folder, words=WORDS, **settings):
  pieces = ['[PAD]', '[unused0]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *words]
  (folder / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
  if settings:
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return folder


def write_gpt2(folder, special=('<|endoftext|>',), names=('vocab.json', 'merges.txt')):
  """Byte-level BPE whose special tokens come after its pieces."""
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=290, initial_alphabet=alphabet, show_progress=False
  )
  model.train_from_iterator([TEXT], trainer)
  state = json.loads(model.to_str())['model']
  vocab = state['vocab'] | {name: len(state['vocab']) + i for i, name in enumerate(special)}
  (folder / names[0]).write_text(json.dumps(vocab))
  lines = ['#version: 0.2', *(' '.join(pair) for pair in state['merges'])]
  (folder / names[1]).write_text('\n'.join(lines) + '\n')
  return folder


def write_t5(folder, name='spiece.model', **options):
  with open(folder / name, 'wb') as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter([TEXT] * 5),
      model_writer=file,
      minloglevel=2,
      hard_vocab_limit=False,
      **dict(vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1) | options,
    )
  return folder


def write_json(folder):
  """A tokenizer.json of pieces with scores, ordinary and special tokens beside them."""
  pieces = [('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0), *((c, -5.0) for c in '<s>/fox a')]
  pieces += [('\u2581', -2.0), ('\u2581fox', -3.0), ('\u2581a', -3.0)]
  made = tokenizers.Tokenizer(tokenizers.models.Unigram(list(dict(pieces).items()), unk_id=2))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  made.decoder = tokenizers.decoders.Metaspace()
  made.add_special_tokens(['<pad>', '</s>', '<unk>', '<mask>'])
  made.add_tokens(['foxes'])
  made.enable_truncation(3)
  made.enable_padding(length=9)
  made.save(str(folder / 'tokenizer.json'))
  return folder


WRITERS = {'wordpiece': write_bert, 'byte_bpe': write_gpt2, 'sentencepiece': write_t5}
WRITERS['tokenizer_json'] = write_json


@pytest.fixture(params=list(WRITERS))
def folder(request, tmp_path):
  return WRITERS[request.param](tmp_path)


def test_what_was_saved_is_the_same(folder, tmp_path):
  made = Tokenizer.load(folder)
  for add in ((), ('sentinels',)):
    made = Tokenizer.load(folder, add, sentinels=3)
    made.save(tmp_path / 'saved')
    again = Tokenizer.load(tmp_path / 'saved')
    assert again.fingerprint == made.fingerprint and again.vocab_size == made.vocab_size
    assert again.special_ids == made.special_ids and again.sentinel_ids == made.sentinel_ids
    np.testing.assert_array_equal(again.encode(TEXT), made.encode(TEXT))
    assert again.pad_id == made.pad_id
  grown = Tokenizer.load(tmp_path / 'saved', ('mask',)) if not_masked(made) else made
  assert grown.mask_id in grown.special_ids


def not_masked(made):
  return 'mask' not in made.spec['roles']


def test_text_yields_no_special_token_and_offsets_lead_back(folder):
  made = Tokenizer.load(folder, ('sentinels',), sentinels=2)
  for name in [*made.spec['special'], 'the quick fox.', 'a fox</s> a']:
    for text in (name, f'fox {name} a', f'fox{name}a'):
      ids, offsets = made.encode_with_offsets(text)
      np.testing.assert_array_equal(ids, made.encode(text))
      assert not set(ids.tolist()) & (made.special_ids - {made.spec['roles'].get('unk')})
      assert all(0 <= start <= end <= len(text) for start, end in offsets)
  ids, offsets = made.encode_with_offsets('a fox')
  assert [('a fox')[start:end] for start, end in offsets if end > start][-1][-1] == 'x'
  assert made.starts_word.shape == (made.vocab_size,)


def test_bert(tmp_path):
  made = Tokenizer.load(write_bert(tmp_path))
  assert made.spec['name'] == 'wordpiece' and made.vocab_size == 18
  assert (made.pad_id, made.unk_id, made.cls_id, made.sep_id, made.mask_id) == (0, 2, 3, 4, 5)
  # What stands in for a role that a vocabulary lacks.
  assert (made.bos_id, made.eos_id) == (made.cls_id, made.sep_id)
  assert made.special_ids == {0, 2, 3, 4, 5} and made.sentinel_ids == ()
  ids = made.encode('The quick fox jumped, ABC \u4e2d\u4e2d [MASK] [unused0].')
  shown = ' '.join(made.piece(id) for id in ids)
  assert shown.startswith('the quick fox jump ##ed , [UNK] \u4e2d \u4e2d [UNK] [UNK] [UNK] [UNK]')
  assert made.decode(made.encode('The fox jumps.')) == 'the fox jumps.'
  assert list(made.starts_word[made.encode('foxs jump')]) == [True, False, True]
  single = Tokenizer.load(tmp_path / 'vocab.txt')
  assert single.fingerprint == made.fingerprint


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'do_lower_case': False}, 'has do_lower_case=False, tokenizer.json says True'),
    ({'do_lower_case': False, 'tokenizer_class': 'PreTrainedTokenizerFast'}, ''),
    ({'strip_accents': False}, 'has strip_accents=False, tokenizer.json says True'),
    ({'do_lower_case': True, 'strip_accents': None}, ''),
  ],
)
def test_two_files_that_say_different_things_of_a_text(settings, message, tmp_path):
  made = tokenizers.BertWordPieceTokenizer(str(write_bert(tmp_path) / 'vocab.txt'), lowercase=True)
  made.save(str(tmp_path / 'tokenizer.json'))
  settings = {'tokenizer_class': 'BertTokenizer'} | settings
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
  if message:
    with pytest.raises(UserError, match=message):
      Tokenizer.load(tmp_path)
  else:
    assert Tokenizer.load(tmp_path).encode('THE').tolist() == [6]


def test_case_is_that_of_the_vocabulary_unless_the_folder_says_otherwise(tmp_path):
  assert not Tokenizer.load(write_bert(tmp_path, [*WORDS, 'The'])).spec['lowercase']
  assert Tokenizer.load(write_bert(tmp_path)).encode('THE')[0] == 6
  made = Tokenizer.load(write_bert(tmp_path, do_lower_case=False, strip_accents=True))
  assert made.encode('THE')[0] == made.unk_id != made.encode('th\xe9')[0]


@pytest.mark.parametrize('names', [('vocab.json', 'merges.txt'), ('encoder.json', 'vocab.bpe')])
def test_gpt2_has_one_special_token(tmp_path, names):
  made = Tokenizer.load(write_gpt2(tmp_path, names=names))
  end = made.vocab_size - 1
  assert {made.bos_id, made.eos_id, made.pad_id, made.cls_id, made.sep_id} == {end}
  assert made.special_ids == {end}
  with pytest.raises(UserError, match='no mask token; --config.tokenizer.add=mask gives'):
    _ = made.mask_id
  text = 'a\ud7ff \U0001f600<|endoftext|>\n'
  assert made.decode(made.encode(text)) == text
  assert made.piece(int(made.encode(' fox')[0])).startswith('\u2581')


def test_roberta(tmp_path):
  special = ('<s>', '<pad>', '</s>', '<unk>', '<|endoftext|>', '<mask>')
  made = Tokenizer.load(write_gpt2(tmp_path, special))
  first = made.vocab_size - 6
  found = [made.bos_id, made.pad_id, made.eos_id, made.unk_id, made.mask_id]
  assert found == [first, first + 1, first + 2, first + 3, first + 5]
  assert (made.cls_id, made.sep_id) == (made.bos_id, made.eos_id)
  assert made.special_ids == set(found)  # Not GPT-2's, which is one token among others here.


def test_a_space_is_put_before_the_text_where_the_folder_says_so(tmp_path):
  (write_gpt2(tmp_path) / 'tokenizer_config.json').write_text('{"add_prefix_space": true}')
  made = Tokenizer.load(tmp_path)
  for text in ('fox', ' fox', 'the fox', '', '\tfox', '  fox'):
    ids = made.encode(text)
    np.testing.assert_array_equal(ids, made.encode_with_offsets(text)[0])
    assert made.decode(ids) == text if text.startswith(' ') or not text else ' ' + text
  marked = made.encode_marked('the<>fox', {'<>': 7}).tolist()
  assert made.decode(marked[: marked.index(7)]) == ' the'
  assert made.decode(marked[marked.index(7) + 1 :]) == 'fox'


def test_growth_is_explicit(tmp_path):
  plain = Tokenizer.load(write_gpt2(tmp_path))
  grown = Tokenizer.load(tmp_path, ('mask', 'sentinels', 'pad'), sentinels=3)
  n = plain.vocab_size
  assert (grown.mask_id, grown.sentinel_ids, grown.pad_id) == (n, (n + 3, n + 2, n + 1), n + 4)
  assert grown.vocab_size == n + 5 and grown.eos_id == plain.eos_id
  np.testing.assert_array_equal(grown.encode(TEXT), plain.encode(TEXT))
  assert grown.fingerprint != plain.fingerprint
  assert grown.decode([n, n + 3], keep_special=True) == '[MASK]<extra_id_0>'
  with pytest.raises(UserError, match=r'config\.tokenizer\.add.*has eos'):
    Tokenizer.load(tmp_path, ('eos',))
  with pytest.raises(UserError, match=r"config\.tokenizer\.add: 'masks' is not one of pad"):
    Tokenizer.load(tmp_path, ('masks',))


def test_sentinels_of_t5_count_down(tmp_path):
  bare = Tokenizer.load(write_t5(tmp_path))
  own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'spiece.model'))
  n = own.vocab_size()
  assert bare.vocab_size == n and bare.sentinel_ids == ()
  assert (bare.pad_id, bare.eos_id, bare.unk_id, bare.bos_id) == (0, 1, 2, 0)
  names = [f'<extra_id_{i}>' for i in range(4)]
  (tmp_path / 'special_tokens_map.json').write_text(
    json.dumps({'eos_token': {'content': '</s>'}, 'additional_special_tokens': names})
  )
  declared = Tokenizer.load(tmp_path)
  assert declared.sentinel_ids == (n + 3, n + 2, n + 1, n) and declared.vocab_size == n + 4
  with pytest.raises(UserError, match='has sentinels'):
    Tokenizer.load(tmp_path, ('sentinels',))
  (tmp_path / 'special_tokens_map.json').unlink()
  assert Tokenizer.load(tmp_path, ('sentinels',), 4).sentinel_ids == declared.sentinel_ids
  np.testing.assert_array_equal(bare.encode('the dog'), own.encode('the dog'))


def test_albert_and_xlnet_prepare_text(tmp_path):
  """Spaces, quotes, accents and case, and offsets through all of it."""
  write_t5(tmp_path, eos_id=-1, unk_id=1, control_symbols=['[CLS]', '[SEP]', '[MASK]'])
  made = Tokenizer.load(tmp_path)
  lower = TEXT.lower()
  assert made.spec['plain'] and not made.spec['lowercase']  # TEXT has an upper-case letter.
  assert (made.cls_id, made.sep_id, made.mask_id) == (2, 3, 4)
  (tmp_path / 'tokenizer_config.json').write_text('{"do_lower_case": true}')
  made = Tokenizer.load(tmp_path)
  text = "  TH\xc9\u0301  do\x85g''\n\u0130x\ufb01"
  ids, offsets = made.encode_with_offsets(text)
  np.testing.assert_array_equal(ids, made.encode('the do g"\nixfi'))
  np.testing.assert_array_equal(ids, made.encode(text))
  np.testing.assert_array_equal(made.encode(TEXT), made.encode(lower))
  found = ''.join(''.join(text[start:end] for start, end in offsets).split())
  # Both letters of the ligature are pieces of their own, and stand where it does.
  assert found.replace('\u0301', '') == "TH\xc9dog''\u0130x\ufb01\ufb01"


def test_xlnet(tmp_path):
  special = ['<cls>', '<sep>', '<pad>', '<mask>', '<eod>']
  options = dict(pad_id=-1, unk_id=0, bos_id=1, eos_id=2, control_symbols=special)
  write_t5(tmp_path, user_defined_symbols=['<eop>', '.'], **options)
  made = Tokenizer.load(tmp_path)
  found = (made.unk_id, made.bos_id, made.eos_id, made.cls_id, made.sep_id, made.pad_id)
  assert (*found, made.mask_id) == tuple(range(7))
  assert 8 in made.encode('fox<eop>dog') and made.spec['plain'] and not made.spec['lowercase']
  declared = json.dumps({'additional_special_tokens': ['<eop>', '<eod>']})
  (tmp_path / 'special_tokens_map.json').write_text(declared)
  made = Tokenizer.load(tmp_path)
  assert 8 in made.special_ids and 8 not in made.encode('fox<eop>dog')
  np.testing.assert_array_equal(made.encode(' the\xa0 d\xf3g'), made.encode('the dog'))


def test_a_user_defined_symbol_with_a_role_is_out_of_reach(tmp_path):
  made = Tokenizer.load(write_t5(tmp_path, user_defined_symbols=['<mask>', '<fox>']))
  assert made.mask_id not in made.encode('the<mask>dog').tolist()
  assert made.encode('the<fox>dog').tolist().count(made.mask_id + 1) == 1


def test_a_tokenizer_json_is_read_without_truncation_and_padding(tmp_path):
  made = Tokenizer.load(write_json(tmp_path))
  text = 'fox a foxes a fox'
  ids = made.encode(text)
  assert len(ids) == 6 or '\u2581fox' in [made.piece(i) for i in ids]
  assert made.piece(made.vocab_size - 1) == 'foxes' and made.vocab_size - 1 in ids
  assert made.mask_id == made.vocab_size - 2
  assert made.decode(ids).replace(' ', '') == text.replace(' ', '')


NO_UNK = json.dumps({'model': {'type': 'WordPiece', 'unk_token': '[UNK]', 'vocab': {'a': 0}}})


@pytest.mark.parametrize(
  'files, message',
  [
    ({}, 'none of tokenizer.json, spiece.model, vocab.txt'),
    ({'vocab.json': '{"a": 0}'}, 'merges.txt is missing'),
    ({'vocab.json': '{"a": 0}', 'merges.txt': 'a b c'}, "'a b c' is not two pieces"),
    ({'vocab.json': '{"a": 0}', 'merges.txt': 'x y'}, 'cannot be read'),
    ({'vocab.json': '{"a": ', 'merges.txt': ''}, 'not a byte_bpe vocabulary'),
    ({'vocab.txt': 'a\nb\n'}, r'vocab.txt has no <unk>|no \[UNK\]'),
    ({'spiece.model': 'no model'}, 'not a sentencepiece vocabulary'),
    ({'tokenizer.json': '{"model": {"type": "BPE"}}'}, 'not a tokenizer_json vocabulary'),
    ({'tokenizer.json': NO_UNK}, r'tokenizer.json has no \[UNK\], which WordPiece needs'),
    ({'tokenizer.json': '{"model": '}, r'tokenizer\.json:1: malformed JSON'),
    ({'vocab.txt': '[UNK]\na\n', 'added_tokens.json': '{"dog": 2}'}, "'dog' is an ordinary token"),
  ],
)
def test_mistakes(files, message, tmp_path):
  for name, content in files.items():
    (tmp_path / name).write_text(content)
  with pytest.raises(UserError, match=message) as error:
    Tokenizer.load(tmp_path)
  assert '\n' not in str(error.value)


EMPTY_BPE = b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}'


@pytest.mark.parametrize(
  'file, content, message',
  [
    ('vocab.txt', b'', 'vocab.txt: it holds no token'),
    ('tokenizer.json', EMPTY_BPE, 'tokenizer.json: it holds no token'),
    ('tokenizer.json', b'\xff{}', 'tokenizer.json: not UTF-8 text'),
    ('tokenizer.json', b'[]', 'tokenizer.json: expected a JSON object'),
    ('spiece.model', b'', 'spiece.model: not a sentencepiece vocabulary (it is empty)'),
    ('vocab.json', b'{}', 'vocab.json: it holds no token'),
    ('vocab.json', b'[]', 'vocab.json: expected an object of tokens and their ids'),
    ('vocab.json', b'{"a": "b"}', "vocab.json: 'a' has the id 'b'"),
    ('vocab.json', b'{"a": -1}', "vocab.json: 'a' has the id -1"),
    ('tokenizer_config.json', b'[]', 'tokenizer_config.json: expected a JSON object'),
    ('tokenizer_config.json', b'\xff', 'tokenizer_config.json: not UTF-8 text'),
    ('special_tokens_map.json', b'[]', 'special_tokens_map.json: expected a JSON object'),
    ('added_tokens.json', b'["x"]', 'added_tokens.json: expected a JSON object'),
    ('added_tokens.json', b'{"x": "y"}', "added_tokens.json: 'x' has the id 'y'"),
    ('tokenizer_config.json', b'{"added_tokens_decoder": []}', 'added_tokens_decoder: expected'),
    ('tokenizer_config.json', b'{"added_tokens_decoder": {"9": {}}}', 'expected tokens by their'),
    (
      'tokenizer_config.json',
      b'{"added_tokens_decoder": {"x": {"content": "q"}}}',
      "added_tokens_decoder: expected tokens by their ids, got {'x': {'content': 'q'}}",
    ),
    ('tokenizer_config.json', b'{"pad_token": 3}', 'pad_token: expected a token, got 3'),
    ('special_tokens_map.json', b'{"eos_token": {}}', 'eos_token: expected a token, got {}'),
    ('tokenizer_config.json', b'{"additional_special_tokens": [3]}', 'expected tokens, got [3]'),
    ('tokenizer_config.json', b'{"extra_ids": "many"}', "whole number up to 10000, got 'many'"),
    ('tokenizer_config.json', b'{"extra_ids": 1000000000000}', 'number up to 10000, got 1000000'),
    ('tokenizer_config.json', b'{"do_lower_case": "no"}', "expected true or false, got 'no'"),
  ],
)
def test_a_file_of_another_shape_is_named(file, content, message, tmp_path):
  if file == 'vocab.json':
    (tmp_path / 'merges.txt').write_text('')
  if file.startswith(('tokenizer_config', 'special', 'added')):
    write_bert(tmp_path)
  (tmp_path / file).write_bytes(content)
  with pytest.raises(UserError, match=re.escape(message)) as error:
    Tokenizer.load(tmp_path)
  assert f'{tmp_path / file}' in str(error.value)


def test_places_that_hold_no_vocabulary(tmp_path):
  with pytest.raises(UserError, match='does not exist'):
    Tokenizer.load(tmp_path / 'nosuch')
  (tmp_path / 'weights.bin').write_bytes(b'')
  with pytest.raises(UserError, match='no vocabulary file'):
    Tokenizer.load(tmp_path / 'weights.bin')
  (tmp_path / 'sentencepiece.bpe.model').write_bytes(b'')
  with pytest.raises(UserError, match='its ids are shifted'):
    Tokenizer.load(tmp_path / 'sentencepiece.bpe.model')


def test_a_model_of_ours_alone(tmp_path):
  """The .model in a folder that flaxlm wrote knows its special tokens by itself."""
  from flaxlm.config.data import TokenizerConfig

  whole = tokenizer.train(TokenizerConfig(vocab_size=420, sentinels=3), [TEXT])
  whole.save(tmp_path)
  alone = Tokenizer.load(tmp_path / 'tokenizer.model')
  assert alone.special_ids == whole.special_ids and alone.sentinel_ids == whole.sentinel_ids
  assert (alone.pad_id, alone.cls_id, alone.mask_id) == (0, 4, 6)
  np.testing.assert_array_equal(alone.encode(TEXT), whole.encode(TEXT))
