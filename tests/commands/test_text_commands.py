"""`python -m flaxlm tokenizer` and `corpus`, as a user calls them."""

import json

import pytest

from flaxlm.commands import corpus
from flaxlm.commands import tokenizer as tokenizer_command
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError

WORDS = ['the', 'quick', 'brown', 'fox', 'jumps', 'over', 'a', 'lazy', 'dog', 'and', 'sleeps']


@pytest.fixture
def text(tmp_path):
  lines = [' '.join(WORDS[i % 7 :][: 3 + i % 5]) for i in range(60)]
  path = tmp_path / 'x.tsv'
  path.write_text('text\tlabel\n' + ''.join(f'{line}\t1\n' for line in lines))
  return str(path)


def test_tokenizer(text, tmp_path, capsys):
  output = str(tmp_path / 'made')
  argv = ['--input', text, '--output', output, '--vocab_size', '320', '--sentinels', '5']
  tokenizer_command.main(argv)
  made = Tokenizer.load(output)
  assert made.decode(made.encode('lazy dog')) == 'lazy dog'
  assert len(made.sentinel_ids) == 5
  assert f'{made.vocab_size} tokens' in capsys.readouterr().out
  with pytest.raises(UserError, match='holds a tokenizer already'):
    tokenizer_command.main(argv)


def test_corpus(text, tmp_path, capsys):
  argv = ['--input', text, '--name', 'bytes', '--cache_dir', str(tmp_path / 'cache'), '--json']
  corpus.main(argv)
  found = json.loads(capsys.readouterr().out)
  assert found['train']['documents'] == 54 and found['validation']['documents'] == 6
  assert found['train']['tokens'] == found['train']['bytes']
  assert found['train']['path'].startswith(str(tmp_path / 'cache'))
  corpus.main(argv[:-1])
  assert 'validation' in capsys.readouterr().out


@pytest.mark.parametrize(
  'argv, message',
  [
    ([], 'one of --config and --input'),
    (['--input', 'nosuch.txt'], 'nosuch.txt does not exist'),
    (['--input', 'embedded', '--vocab_size', '3'], 'config.tokenizer.vocab_size'),
    (['--input', 'embedded', '--name', 'byte'], "config.tokenizer.name.*'bytes'"),
    (['--input', 'embedded', '--name', 'bytes', '--vocab_size', '300'], 'vocab_size'),
    (['--input', 'embedded', '--config.seed=1'], '--config.seed changes a recipe'),
    (['convert'], 'set --tfds=NAME'),
  ],
)
def test_mistakes(argv, message):
  with pytest.raises(UserError, match=message):
    corpus.main(argv)
