"""The tokenizer files of an exported folder: what they say, and that transformers reads them so."""

import importlib
import io
import json
import types

import pytest
import sentencepiece
import tokenizers
from etils import epath
from public_folder import WORDS

from flaxlm.commands import _public_tokenizer
from flaxlm.config.data import TokenizerConfig
from flaxlm.data import tokenizer, tokenizer_published
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.interop import mapping, tokenizer_json

TEXTS = [
  'The quick brown fox, and  a DOG.   It was 1,234.5 miles!', 'Größe: Ünïcode, naïve cafés', '',
  ' A line\n  and a second one\n\n\tend ', "``Quoted'' ΟΔΟΣ, ΣΑΣ x‘Σ x․Σ. 汉字 ひらがな 🙂",
  'x <0x41> a_b {y}',
] * 3  # fmt: skip
# The kind, the sort of pieces, and a family that it may be of.
TRAINED = [
  *[('sentencepiece', 'unigram', f) for f in ('bert', 'gpt2', 'llama', 't5', 'bart', 'xlnet')],
  *[('sentencepiece', 'bpe', 'llama'), ('wordpiece', '', 'bert'), ('characters', '', 'gpt2')],
  *[('byte_bpe', '', f) for f in ('gpt2', 'bart', 'modernbert', 'roberta')],
  ('bytes', '', 't5'),
]


def trained(name, model_type='', **options):
  sizes = {'byte_bpe': 280, 'sentencepiece': 400}
  options |= {'model_type': model_type} if model_type else {}
  options = {'vocab_size': sizes.get(name, 200), 'sentinels': 3} | options
  return tokenizer.train(TokenizerConfig(name=name, **options), TEXTS)


def write(target, own, family, **objective):
  """The settings that were written; objective: fields of its config."""
  target.mkdir(parents=True, exist_ok=True)
  declared = mapping.families()[family]
  token_types = {'bert': 2, 'xlnet': 3}.get(family, 1)
  model = types.SimpleNamespace(name=declared.model, max_length=64, token_types=token_types)
  described = {'model_type': family, 'vocab_size': own.vocab_size}
  (target / 'config.json').write_text(json.dumps(described))
  public = types.SimpleNamespace(family=declared, config_json=described)
  config = types.SimpleNamespace(model=model, max_length=48)
  _public_tokenizer.write(own, target, config, types.SimpleNamespace(**objective), public)
  file = target / 'tokenizer_config.json'
  return json.loads(file.read_text()) if file.exists() else None


def byte_level(folder, **settings):
  """A folder like GPT-2's, of 256 bytes and an end of text."""
  files = trained('byte_bpe', sentinels=0).files
  vocab = {n: i for n, i in json.loads(files['vocab.json']).items() if i >= 7}
  vocab = {name: i for i, name in enumerate(['<|endoftext|>', *vocab])}
  folder.mkdir()
  (folder / 'vocab.json').write_text(json.dumps(vocab))
  (folder / 'merges.txt').write_bytes(files['merges.txt'])
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return folder


@pytest.mark.parametrize('case', ['sentencepiece', 'wordpiece', 'byte_bpe', 'characters', 'bytes'])
@pytest.mark.parametrize('lowercase', [False, True])
def test_a_trained_tokenizer_keeps_its_ids(case, lowercase):
  own = trained(case, **{'lowercase': lowercase} if case not in ('characters', 'bytes') else {})
  made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json.state_of(own)))
  made.encode_special_tokens = True
  for text in (*TEXTS, 'a <pad> b', '[MASK]</s>', '<extra_id_1>.'):
    assert made.encode(text, add_special_tokens=False).ids == own.encode(text).tolist(), text
  special = own.published_spec()['special']
  assert {n: made.token_to_id(n) for n in special} == special
  assert made.get_vocab_size() == own.vocab_size


def test_a_text_goes_on_behind_a_mask():
  own = trained('sentencepiece')
  made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json.state_of(own)))
  text = 'The quick[MASK] fox[MASK].'
  wanted = own.encode_marked(text, {'[MASK]': own.mask_id}).tolist()
  assert made.encode(text).ids == wanted
  # It stands for its space; so does a sentinel.
  assert made.encode('The quick [MASK] fox [MASK].').ids == wanted
  assert (
    own.encode_marked('The quick [MASK] fox [MASK].', {'[MASK]': own.mask_id}).tolist() == wanted
  )
  text = 'The quick <extra_id_0> fox <extra_id_1>.'
  first, second = own.sentinel_ids[:2]
  wanted = own.encode_marked('The quick[MASK] fox[MASK].', {'[MASK]': first}).tolist()
  wanted[-1 - wanted[::-1].index(first)] = second
  assert own.encode_marked(text, own.sentinel_marks).tolist() == wanted == made.encode(text).ids


@pytest.mark.parametrize(
  'case, model_type',
  [
    ('sentencepiece', 'unigram'), ('sentencepiece', 'bpe'), ('wordpiece', ''), ('byte_bpe', ''),
    ('characters', ''), ('bytes', ''),
  ],
)  # fmt: skip
def test_an_exported_tokenizer_is_read_back_as_it_was(tmp_path, case, model_type):
  """Not only its ids: what a mask stands for, what follows one, and where pieces stand."""
  own = trained(case, model_type)
  write(tmp_path, own, 't5' if case in ('bytes', 'sentencepiece') else 'bert', marks='t5')
  again = Tokenizer.load(tmp_path)
  assert again.pieces_hold_spaces == own.pieces_hold_spaces
  for text in (
    'The quick [MASK] fox',
    'The qu[MASK]ck fox [MASK].',
    '[MASK]',
    'a  [MASK]\n[MASK]b',
  ):
    mark = {'[MASK]': own.mask_id}
    wanted = own.encode_marked(text, mark).tolist()
    assert again.encode_marked(text, mark).tolist() == wanted, text
  text = 'Größe of  the quick fox'
  assert again.encode_with_offsets(text)[1] == own.encode_with_offsets(text)[1]


def test_the_roles_and_the_marks_of_the_objective(tmp_path):
  settings = write(tmp_path, trained('sentencepiece'), 'bert')
  assert settings['tokenizer_class'] == 'PreTrainedTokenizerFast'
  assert settings['model_max_length'] == 48 and 'token_type_ids' in settings['model_input_names']
  assert settings['pad_token'] == '<pad>' and settings['mask_token'] == '[MASK]'
  made = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
  pair = made.encode('fox', 'a')
  assert [t for t in pair.tokens if t[0] == '['] == ['[CLS]', '[SEP]', '[SEP]']
  assert pair.type_ids[0] == 0 and pair.type_ids[-1] == 1
  settings = write(tmp_path, trained('sentencepiece'), 'xlnet', pair_separators=1)
  assert settings['padding_side'] == 'left'
  made = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
  assert made.encode('fox').tokens[-2:] == ['[SEP]', '[CLS]']
  for ends, expected in (('bos_eos', ['<s>', 'x', '</s>']), ('bos', ['<s>', 'x']), ('none', ['x'])):
    write(tmp_path, trained('bytes'), 'gpt2', marks='t5', decoder_marks=ends)
    made = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
    assert made.encode('x').tokens == expected
    made.enable_padding(length=16)  # As training scripts leave it.
    made.save(str(tmp_path / 'tokenizer.json'))
    marks = importlib.import_module('flaxlm.commands.import')._marks
    assert marks(epath.Path(tmp_path), trained('bytes')) == ends
  assert marks(epath.Path(tmp_path / 'none'), trained('bytes')) == ''
  write(tmp_path, trained('bytes'), 'gpt2', boundaries=False)
  assert tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json')).encode('x').tokens == [
    'x'
  ]


def test_a_published_vocabulary_keeps_what_it_lacks(tmp_path):
  """Rows of the model's table that no token has are not tokens."""
  own = Tokenizer.load(byte_level(tmp_path / 'gpt2'))
  spec, size = own.published_spec(), own.vocab_size
  unused = {f'<unused_{size + i}>': size + i for i in range(3)}
  padded = Tokenizer(spec | {'size': size + 3, 'special': spec['special'] | unused}, own.files)
  settings = write(tmp_path / 'out', padded, 'gpt2')
  assert settings['eos_token'] == '<|endoftext|>' and 'mask_token' not in settings
  made = tokenizers.Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
  assert made.get_vocab_size() == size and made.encode('x').tokens == ['x']
  assert (tmp_path / 'out' / 'merges.txt').exists()
  again = Tokenizer.load(tmp_path / 'out')
  assert again.encode(TEXTS[0]).tolist() == own.encode(TEXTS[0]).tolist()
  # Between tokens they hold a place.
  grown = Tokenizer(tokenizer_published.grow(padded.published_spec(), ['mask'], 0), own.files)
  assert write(tmp_path / 'grown', grown, 'gpt2')['mask_token'] == '[MASK]'
  made = tokenizers.Tokenizer.from_file(str(tmp_path / 'grown' / 'tokenizer.json'))
  assert made.token_to_id('[MASK]') == grown.mask_id == size + 3


def test_tokens_that_a_vocabulary_grew_by(tmp_path):
  own = Tokenizer.load(byte_level(tmp_path / 'gpt2'), add=['pad', 'mask', 'sentinels'], sentinels=2)
  settings = write(tmp_path / 'out', own, 'gpt2')
  assert settings['pad_token'] == '[PAD]' and settings['mask_token'] == '[MASK]'
  made = tokenizers.Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
  names = ('[PAD]', '[MASK]', '<extra_id_1>', '<extra_id_0>')
  assert [made.token_to_id(n) for n in names] == [own.pad_id, own.mask_id, *own.sentinel_ids[::-1]]
  assert made.encode('a [MASK]').ids == [*own.encode('a'), own.mask_id]
  again = Tokenizer.load(tmp_path / 'out')
  assert (again.pad_id, again.mask_id) == (own.pad_id, own.mask_id)


def test_a_tokenizer_that_no_tokenizer_json_expresses(tmp_path, capsys):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=20, model_type='word',
    minloglevel=2, hard_vocab_limit=False,
  )  # fmt: skip
  (tmp_path / 'word.model').write_bytes(model.getvalue())
  own = Tokenizer.load(tmp_path / 'word.model')
  assert write(tmp_path / 'out', own, 't5') is None
  assert 'not for transformers' in capsys.readouterr().err
  assert not (tmp_path / 'out' / 'spiece.model').exists()
  assert Tokenizer.load(tmp_path / 'out' / 'tokenizer').fingerprint == own.fingerprint


def assert_same(folder, own, extra=()):
  """transformers' ids of texts, alone and in a pair, are those of the tokenizer."""
  transformers = pytest.importorskip('transformers')
  theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
  for text in (*TEXTS, *tokenizer_json.CHECKED, *extra):
    assert theirs(text, add_special_tokens=False)['input_ids'] == own.encode(text).tolist(), text
  for role, id in own.published_spec()['roles'].items():
    assert getattr(theirs, f'{role}_token_id') == id
  special = own.published_spec()['special']
  for name, id in special.items():
    found = theirs(f'a {name} b', add_special_tokens=False)['input_ids']
    assert id in found and theirs.convert_tokens_to_ids(name) == id
  assert theirs.model_max_length == 48 and len(theirs) == own.vocab_size
  return theirs


@pytest.mark.full
@pytest.mark.parametrize('name,model_type,family', TRAINED)
def test_transformers_reads_what_was_trained(name, model_type, family, tmp_path):
  own = trained(name, model_type)
  write(tmp_path, own, family)
  theirs = assert_same(tmp_path, own)
  first, second = own.encode('The fox').tolist(), own.encode('a dog').tolist()
  cls, sep, bos, eos = [own.cls_id], [own.sep_id], [own.bos_id], [own.eos_id]
  wanted = {
    'bert': (cls + first + sep, second + sep), 'modernbert': (cls + first + sep, second + sep),
    'roberta': (cls + first + sep, sep + second + sep), 't5': (first + eos, second + eos),
    'bart': (bos + first + eos, eos + second + eos), 'xlnet': (first + sep, second + sep + cls),
    'llama': (bos + first, bos + second), 'gpt2': (bos + first, bos + second),
  }  # fmt: skip
  pair = sum(wanted[family], [])
  assert theirs('The fox', 'a dog')['input_ids'] == pair
  single = theirs('The fox')['input_ids']
  assert single == wanted[family][0] + (cls if family == 'xlnet' else [])
  assert theirs.decode(single, skip_special_tokens=True) == 'The fox'


@pytest.mark.full
@pytest.mark.parametrize('cased', [False, True])
def test_transformers_reads_the_case_of_a_bert(cased, tmp_path):
  words = [*WORDS, 'A', 'B', 'é', '汉']
  (tmp_path / 'vocab.txt').write_text('\n'.join(words) + '\n')
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'do_lower_case': not cased}))
  own = Tokenizer.load(tmp_path)
  assert (own.encode('A').tolist() == [words.index('A')]) == cased
  write(tmp_path / 'out', own, 'bert')
  assert_same(tmp_path / 'out', own, ['A b É é a汉b [x]'])


@pytest.mark.full
@pytest.mark.parametrize('grown', [False, True])
@pytest.mark.parametrize('prefix', [False, True])
def test_transformers_reads_a_byte_level_vocabulary(grown, prefix, tmp_path):
  folder = byte_level(tmp_path / 'gpt2', add_prefix_space=prefix)
  own = Tokenizer.load(folder, add=['pad', 'mask', 'sep'] if grown else [])
  write(tmp_path / 'out', own, 'gpt2')
  theirs = assert_same(tmp_path / 'out', own)
  assert theirs('x')['input_ids'] == own.encode('x').tolist()


@pytest.mark.full
@pytest.mark.parametrize('accents', [False, True])
def test_transformers_reads_an_xlnet_vocabulary(accents, tmp_path):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=120, minloglevel=2,
    control_symbols=['<cls>', '<sep>', '<pad>', '<mask>', '<eod>'], hard_vocab_limit=False,
    user_defined_symbols=['<eop>'],
  )  # fmt: skip
  (tmp_path / 'spiece.model').write_bytes(model.getvalue())
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'keep_accents': accents}))
  own = Tokenizer.load(tmp_path)
  write(tmp_path / 'out', own, 'xlnet')
  assert_same(tmp_path / 'out', own, ['Größe', 'one <eop> two'])
