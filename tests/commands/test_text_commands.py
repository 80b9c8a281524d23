"""`python -m flaxlm tokenizer` and `corpus`, as a user calls them."""

import json
import pathlib

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
  argv = ['--input', text, '--output', output, '--vocab-size', '320', '--sentinels', '5']
  tokenizer_command.main(argv)
  made = Tokenizer.load(output)
  assert made.decode(made.encode('lazy dog')) == 'lazy dog'
  assert len(made.sentinel_ids) == 5
  assert f'{made.vocab_size} tokens' in capsys.readouterr().out
  with pytest.raises(UserError, match='holds a tokenizer already'):
    tokenizer_command.main(argv)


def test_corpus(text, tmp_path, capsys):
  argv = ['--input', text, '--name', 'bytes', '--cache-dir', str(tmp_path / 'cache'), '--json']
  corpus.main(argv)
  found = json.loads(capsys.readouterr().out)
  assert found['train']['documents'] == 54 and found['validation']['documents'] == 6
  assert found['train']['tokens'] == found['train']['bytes']
  assert found['train']['path'].startswith(str(tmp_path / 'cache'))
  corpus.main(argv[:-1])
  assert 'validation' in capsys.readouterr().out


def test_corpus_of_a_mixture(text, tmp_path, capsys):
  """Each source for itself, with what is held out of it."""
  other = tmp_path / 'y.txt'
  other.write_text('\n\n'.join(f'document {i}' for i in range(20)))
  argv = ['--input', f'a={text},b={other}', '--weights', '2,1', '--name', 'bytes', '--json']
  corpus.main([*argv, '--cache-dir', str(tmp_path / 'cache')])
  found = json.loads(capsys.readouterr().out)
  documents = {name: row['documents'] for name, row in found.items()}
  assert documents == {'train/a': 54, 'train/b': 18, 'a': 6, 'b': 2}


def test_audit(text, tmp_path, capsys):
  """Equal lines are counted, also those that differ in case and spaces only, and are located."""
  other = tmp_path / 'y.txt'
  other.write_text('THE QUICK  Brown\n\nnothing of this stands in the other one')
  argv = ['audit', '--input', text, '--against', f'test={other}']
  argv += ['--cache-dir', str(tmp_path / 'cache')]
  corpus.main([*argv, '--json'])
  found = json.loads(capsys.readouterr().out)
  lines = [line.split('\t')[0] for line in pathlib.Path(text).read_text().splitlines()][1:]
  assert found['sets']['train']['documents'] == len(lines)
  assert found['sets']['train']['exact'] == len(lines) - len(set(lines))
  assert found['between']['test'] == {'documents': 2, 'exact': 1, 'near': 0}
  (leak,) = [e for e in found['examples'] if e['sets'] == ['train', 'test']]
  assert leak['places'] == [f'{text}:2', f'{other}:1']
  corpus.main(argv)
  assert 'test in train' in capsys.readouterr().out


def test_audit_of_a_recipe(text, tmp_path, capsys):
  """Of running text with its held-out part, and of the rows of a task."""
  flags = [f'--config.data.train={text}', f'--config.data.cache_dir={tmp_path}/cache']
  corpus.main(['audit', '--config', 'configs/gpt2.py:mini', *flags, '--json'])
  found = json.loads(capsys.readouterr().out)
  assert found['sets']['validation']['documents'] == 6
  flags += [f'--config.data.validation={text}', f'--config.data.test={text}']
  corpus.main(['audit', '--config', 'configs/classify.py:encoder', *flags, '--json'])
  found = json.loads(capsys.readouterr().out)
  assert [row['documents'] for row in found['sets'].values()] == [60, 60, 60]
  assert found['between']['test']['exact'] == 60


def test_an_audit_leaves_out_bad_rows_and_places_the_others(tmp_path, capsys):
  rows = tmp_path / 'rows.tsv'
  rows.write_text('text\tlabel\none two\ta\n\tb\nthree four\tb\none two\ta\n')
  flags = [f'--config.data.{name}={rows}' for name in ('train', 'validation')]
  argv = ['audit', '--config', 'configs/classify.py:encoder', *flags, '--json']
  corpus.main([*argv, '--config.data.on_bad_row=skip'])
  found = json.loads(capsys.readouterr().out)
  assert found['sets']['train'] == {'documents': 3, 'exact': 1, 'near': 0}
  (inside,) = [e for e in found['examples'] if e['sets'] == ['train', 'train']]
  assert sorted(inside['places']) == [f'{rows}:2', f'{rows}:5']
  with pytest.raises(UserError, match=f'{rows}:3'):
    corpus.main(argv)


@pytest.mark.parametrize(
  'argv, message',
  [
    (['audit', '--input', 'embedded', '--threshold', '1.5'], 'threshold'),
    (['--input', 'embedded', '--against', 'x'], '--against belongs to'),
    (['audit', '--input', 'embedded', '--against', 'train=x'], "'train' is not a name"),
    ([], 'one of --config and --input'),
    (['--input', 'nosuch.txt'], 'nosuch.txt does not exist'),
    (['--input', 'embedded', '--vocab-size', '3'], 'config.tokenizer.vocab_size'),
    (['--input', 'embedded', '--name', 'byte'], "config.tokenizer.name.*'bytes'"),
    (['--input', 'embedded', '--name', 'bytes', '--vocab-size', '300'], 'vocab_size'),
    (['--input', 'embedded', '--config.seed=1'], '--config.seed changes a recipe'),
    (['convert'], 'set --tfds=NAME'),
    (
      ['--config', 'configs/gpt2.py:mini', '--vocab-size', '512'],
      '--vocab-size: .*--config.tokenizer.vocab_size',
    ),
    (
      ['--config', 'configs/classify.py', '--config.data.train=x.csv'],
      'labelled rows are not kept; `corpus audit`',
    ),
  ],
)
def test_mistakes(argv, message):
  with pytest.raises(UserError, match=message):
    corpus.main(argv)
