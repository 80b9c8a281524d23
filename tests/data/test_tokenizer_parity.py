"""Published vocabularies: the ids are those of the public implementation, on real lines.

Text of four kinds (English, German, Chinese, tweets with emoji and control characters); where the
original code is another implementation (SentencePiece, a BERT tokenizer in Python), it as well.
"""

import gzip
import lzma
import random
import re
import shutil

import numpy as np
import pytest

from flaxlm.data.tokenizer import Tokenizer

transformers = pytest.importorskip('transformers', reason='the reference is transformers')
pytestmark = pytest.mark.full

LINES = 2000
EXTRA = ('\N{GRINNING FACE}', '\U0001f469\u200d\U0001f52c', '\u2764\ufe0f', '\U0001f1e9\U0001f1ea')
CONTROL = (
  '\x00',
  '\x07',
  '\x1b',
  '\x7f',
  '\x85',
  '\u200b',
  '\u200e',
  '\ufeff',
  '\t',
  '\xa0',
  '\xad',
)


@pytest.fixture(scope='session')
def lines(data_folder):
  """2,000 lines: as many of each kind of text."""
  rng = random.Random(0)
  with lzma.open(data_folder / 'lm/brown/brown.sentences.txt.xz', 'rt') as file:
    english = [line.rstrip('\n') for line in file if line.strip()]
  with gzip.open(data_folder / 'multi30k/train.de.gz', 'rt') as file:
    german = file.read().splitlines()
  chinese = (data_folder / 'chnsenticorp/dev.tsv').read_text().split('\n')[1:-1]
  with lzma.open(data_folder / 'wnut17/wnut17train.conll.xz', 'rt') as file:
    tweets = [
      ' '.join(word.split('\t')[0] for word in tweet.split('\n'))
      for tweet in re.split(r'\n\s*\n', file.read().strip())
    ]
  kinds = [rng.sample(kind, LINES // 4) for kind in (english, german, chinese, tweets)]
  for i, tweet in enumerate(kinds[3]):
    at = rng.randrange(len(tweet) + 1)
    kinds[3][i] = tweet[:at] + rng.choice(EXTRA if i % 2 else CONTROL) + tweet[at:]
  found = [line for kind in kinds for line in kind]
  assert len(found) == LINES and sum(not line.isascii() for line in found) > LINES // 3
  return found


@pytest.fixture(scope='session')
def roberta(data_folder, tmp_path_factory):
  """RoBERTa's vocabulary with the merges that it shares with GPT-2, named as the public files."""
  folder = tmp_path_factory.mktemp('roberta')
  shutil.copy(data_folder / 'tokenizers/roberta/vocab.json', folder / 'vocab.json')
  shutil.copy(data_folder / 'tokenizers/gpt2/vocab.bpe', folder / 'merges.txt')
  return folder


@pytest.fixture(scope='session')
def t5_json(data_folder, tmp_path_factory):
  folder = tmp_path_factory.mktemp('t5')
  with lzma.open(data_folder / 'tokenizers/t5/tokenizer.json.xz') as file:
    (folder / 'tokenizer.json').write_bytes(file.read())
  return folder


def check(ours, reference, lines):
  """Ids of all lines are equal; `reference` gives ids without special tokens."""
  different = [
    (line, ids.tolist(), list(reference(line)))
    for line, ids in zip(lines, ours.encode_batch(lines), strict=True)
    if ids.tolist() != list(reference(line))
  ]
  assert not different, f'{len(different)} of {len(lines)} lines, as {different[:5]}'


def of(tokenizer):
  return lambda line: tokenizer(line, add_special_tokens=False, verbose=False).input_ids


@pytest.mark.parametrize('case', ['uncased', 'cased', 'chinese'])
def test_bert(case, lines, data_folder):
  from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

  folder = data_folder / 'tokenizers' / f'bert-base-{case}'
  ours = Tokenizer.load(folder / 'vocab.txt')
  lower = case != 'cased'
  assert ours.spec['lowercase'] == lower
  fast = transformers.BertTokenizer(str(folder / 'vocab.txt'), do_lower_case=lower)
  assert ours.vocab_size == len(fast)
  assert (ours.pad_id, ours.unk_id) == (fast.pad_token_id, fast.unk_token_id)
  assert (ours.cls_id, ours.sep_id) == (fast.cls_token_id, fast.sep_token_id)
  assert (ours.bos_id, ours.eos_id) == (ours.cls_id, ours.sep_id)
  assert ours.mask_id == fast.mask_token_id
  check(ours, of(fast), lines)
  slow = BertTokenizerLegacy(str(folder / 'vocab.txt'), do_lower_case=lower)
  check(ours, lambda line: slow.convert_tokens_to_ids(slow.tokenize(line)), lines)


def test_gpt2(lines, data_folder):
  folder = data_folder / 'tokenizers/gpt2'
  ours = Tokenizer.load(folder)
  fast = transformers.GPT2Tokenizer(str(folder / 'encoder.json'), str(folder / 'vocab.bpe'))
  assert ours.vocab_size == len(fast) == 50257
  assert {ours.bos_id, ours.eos_id, ours.cls_id, ours.sep_id, ours.pad_id} == {50256}
  check(ours, of(fast), lines)
  assert [ours.decode(ours.encode(line)) for line in lines] == lines


def test_roberta(lines, roberta):
  ours = Tokenizer.load(roberta)
  fast = transformers.RobertaTokenizer(str(roberta / 'vocab.json'), str(roberta / 'merges.txt'))
  assert ours.vocab_size == len(fast) == 50265
  found = (ours.bos_id, ours.pad_id, ours.eos_id, ours.unk_id, ours.mask_id)
  assert found == (0, 1, 2, 3, 50264)
  assert (ours.cls_id, ours.sep_id) == (fast.cls_token_id, fast.sep_token_id) == (0, 2)
  check(ours, of(fast), lines)


def test_t5(lines, data_folder, t5_json):
  import sentencepiece

  ours = Tokenizer.load(data_folder / 'tokenizers/t5')
  assert ours.spec['name'] == 'sentencepiece'
  fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(t5_json / 'tokenizer.json'))
  assert ours.vocab_size == len(fast) == 32100
  assert (ours.pad_id, ours.eos_id, ours.unk_id, ours.bos_id) == (0, 1, 2, 0)
  assert ours.sentinel_ids == tuple(range(32099, 31999, -1))
  assert ours.sentinel_ids[:2] == tuple(
    fast.convert_tokens_to_ids(['<extra_id_0>', '<extra_id_1>'])
  )
  model = sentencepiece.SentencePieceProcessor(
    model_file=str(data_folder / 'tokenizers/t5/spiece.model')
  )
  check(ours, model.encode, lines)
  whole = Tokenizer.load(t5_json)
  assert whole.sentinel_ids == ours.sentinel_ids
  check(whole, of(fast), lines)
  # The two implementations break ties of equal scores differently ('ooooooooo').
  for a, b in zip(ours.encode_batch(lines), whole.encode_batch(lines), strict=True):
    if a.tolist() != b.tolist():
      scores = [sum(model.get_score(int(id)) for id in ids) for ids in (a, b)]
      assert scores[0] == pytest.approx(scores[1], rel=1e-6)


def test_albert(lines, data_folder):
  """Against the public pipeline on the model's own pieces and scores.

  Not against `AlbertTokenizer.from_pretrained(folder)`: transformers 5 makes added tokens of the
  model's user-defined symbols and so loses the space before a full stop, which the weights know.
  """
  from sentencepiece import sentencepiece_model_pb2

  file = data_folder / 'tokenizers/albert/spiece.model'
  ours = Tokenizer.load(file)
  proto = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
  fast = transformers.AlbertTokenizer(
    vocab=[(piece.piece, piece.score) for piece in proto.pieces],
    _spm_precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap,
  )
  assert ours.vocab_size == len(fast) == 30000
  found = (ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id)
  assert found == (0, 1, 2, 3, 4)
  check(ours, of(fast), lines)


def test_a_tokenizer_json_without_its_truncation_and_padding(lines, data_folder):
  file = data_folder / 'tokenizers/bert-base-uncased/minilm_tokenizer.json'
  whole = Tokenizer.load(file)
  parts = Tokenizer.load(data_folder / 'tokenizers/bert-base-uncased/vocab.txt')
  long = [*lines, ' '.join(lines[:30])]
  for ids, expected in zip(whole.encode_batch(long), parts.encode_batch(long), strict=True):
    np.testing.assert_array_equal(ids, expected)
  assert whole.special_ids == parts.special_ids
