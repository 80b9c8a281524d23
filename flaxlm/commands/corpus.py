"""Tokenises a corpus ahead of time, shows its statistics, finds duplicates; converts TFDS sets.

  python -m flaxlm corpus --config configs/gpt2.py:mini --config.data.train=reviews.tsv
  python -m flaxlm corpus --input 'books/*.txt' --documents file
  python -m flaxlm corpus audit --config configs/bert.py:mini --config.data.train=reviews.tsv
  python -m flaxlm corpus audit --input 'books/*.txt' --against 'test=plays.txt,news=news.jsonl'
  python -m flaxlm corpus convert --tfds glue/sst2

The first two leave in the cache what training would make there: the tokenizer, if the config names
none, and the tokens of the training, validation and test text. `audit` counts exact and near
duplicates inside each set and between training and the others, and says where they are. `convert`
writes a TFDS set that is prepared as tfrecord again as array_record, which is read without
TensorFlow; nothing is downloaded.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxlm import commandline, terminal
from flaxlm.errors import UserError, flag


def main(argv: Sequence[str]) -> None:
  from flaxlm.commands import _text

  parser = commandline.Parser(__doc__, overrides=True)
  parser.add_argument(
    'action', nargs='?', default='tokenise', choices=('tokenise', 'audit', 'convert')
  )
  parser.add_argument('--config', help='recipe whose data and tokenizer to prepare')
  parser.add_argument('--input', help='instead: file, glob, tfds:NAME[/SPLIT] or embedded')
  parser.add_argument('--against', help='audit: sets to look for in it: PLACE or NAME=PLACE,...')
  parser.add_argument(
    '--threshold', type=share, default=0.8, help='audit: similarity of near duplicates (0.8)'
  )
  parser.add_argument('--ngram', type=positive, default=5, help='audit: words in a shingle (5)')
  parser.add_argument(
    '--examples', type=positive, default=5, help='audit: most examples of each kind and pair (5)'
  )
  parser.add_argument('--tfds', help='convert: NAME of a prepared TFDS set')
  parser.add_argument('--json', action='store_true', help='print the statistics as JSON')
  _text.add_flags(parser)
  args = parser.parse(argv)
  if args.action == 'convert':
    _convert(args)
    return
  if args.against and args.action != 'audit':
    raise UserError('corpus: --against belongs to `corpus audit`')
  if (args.config is None) == (args.input is None):
    raise UserError('corpus: set one of --config and --input')
  if args.config:
    from flaxlm.config import recipe

    config = recipe.load(args.config, args.overrides)
    if given := _text.given(args):
      name = flag(given[0].rpartition('.')[2])
      raise UserError(f'{name}: is for --input; change the recipe by --config.{given[0]}')
  elif args.overrides:
    raise UserError(f'--config.{args.overrides[0][0]} changes a recipe; set --config')
  else:
    config = _text.config(args, args.input)
  if args.action == 'audit':
    from flaxlm.commands import _audit

    _audit.run(args, config)
    return
  if config.task.name:
    raise UserError('corpus: labelled rows are not kept; `corpus audit` reads them')
  _show(statistics(config), args.json)


def share(text: str) -> float:
  """A similarity above 0 and at most 1."""
  value = float(text)
  if not 0 < value <= 1:
    raise ValueError(text)
  return value


def positive(text: str) -> int:
  """A whole number from 1."""
  value = int(text)
  if value < 1:
    raise ValueError(text)
  return value


def _convert(args: argparse.Namespace) -> None:
  from flaxlm.config.data import DataConfig
  from flaxlm.data import tfds

  if not args.tfds:
    raise UserError('corpus convert: set --tfds=NAME')
  directory = tfds.convert(args.tfds, DataConfig(cache_dir=args.cache_dir or ''))
  print(f'tfds:{args.tfds} is read from {directory} from now on')


def statistics(config: Any) -> dict[str, dict[str, Any]]:
  """Tokenises every part of the config's text; split -> documents, bytes, tokens, lengths, path."""
  from flaxlm.data import splits, store
  from flaxlm.data import tokenizer as tokenizers

  terminal.phase('data', config.data.train)
  train = splits.training(config.data)
  tokenizer = tokenizers.for_corpus(config, train)
  parts = {f'train/{name}': part for name, part in train.sources.items()} or {'train': train}
  parts |= splits.validation(config.data)
  if config.data.test:
    parts['test'] = splits.test(config.data)
  found = {}
  for name, documents in parts.items():
    tokens = store.for_documents(config.data, documents, tokenizer)
    found[name] = {
      'documents': tokens.num_documents,
      'bytes': tokens.num_bytes,
      'tokens': tokens.num_tokens,
      'vocab_size': tokenizer.vocab_size,
      'bytes_per_token': round(tokens.num_bytes / tokens.num_tokens, 3),
      'median_length': int(np.median(tokens.lengths)),
      'longest': int(tokens.lengths.max()),
      'path': str(tokens.directory),
    }
  return found


def _show(found: dict[str, dict[str, Any]], as_json: bool) -> None:
  if as_json:
    print(json.dumps(found))
    return
  columns = list(next(iter(found.values())))[:-1]
  print(' '.join([f'{"":12}', *(f'{column:>15}' for column in columns)]))
  for name, row in found.items():
    print(' '.join([f'{name:12}', *(f'{row[column]:>15,}' for column in columns)]))
  for name, row in found.items():
    print(f'{name}: {row["path"]}')
