"""Tokenises a corpus ahead of time and shows its statistics; converts TFDS sets.

  python -m flaxlm corpus --config configs/gpt2.py:mini --config.data.train=reviews.tsv
  python -m flaxlm corpus --input 'books/*.txt' --documents file
  python -m flaxlm corpus convert --tfds glue/sst2

The first two leave in the cache what training would make there: the tokenizer, if the config names
none, and the tokens of the training, validation and test text. `convert` writes a TFDS set that is
prepared as tfrecord again as array_record, which is read without TensorFlow; nothing is downloaded.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxlm import commandline, terminal
from flaxlm.errors import UserError


def main(argv: Sequence[str]) -> None:
  from flaxlm.commands import _text

  parser = commandline.Parser(__doc__, overrides=True)
  parser.add_argument('action', nargs='?', default='tokenise', choices=('tokenise', 'convert'))
  parser.add_argument('--config', help='recipe whose data and tokenizer to prepare')
  parser.add_argument('--input', help='instead: file, glob, tfds:NAME[/SPLIT] or embedded')
  parser.add_argument('--tfds', help='convert: NAME of a prepared TFDS set')
  parser.add_argument('--json', action='store_true', help='print the statistics as JSON')
  _text.add_flags(parser)
  args = parser.parse(argv)
  if args.action == 'convert':
    _convert(args)
    return
  if (args.config is None) == (args.input is None):
    raise UserError('corpus: set one of --config and --input')
  if args.config:
    from flaxlm.config import recipe

    config = recipe.load(args.config, args.overrides)
  elif args.overrides:
    raise UserError(f'--config.{args.overrides[0][0]} changes a recipe; set --config')
  else:
    config = _text.config(args, args.input)
  _show(statistics(config), args.json)


def _convert(args: argparse.Namespace) -> None:
  from flaxlm.config import schema
  from flaxlm.data import tfds

  if not args.tfds:
    raise UserError('corpus convert: set --tfds=NAME')
  directory = tfds.convert(args.tfds, schema.DataConfig(cache_dir=args.cache_dir or ''))
  print(f'tfds:{args.tfds} is read from {directory} from now on')


def statistics(config: Any) -> dict[str, dict[str, Any]]:
  """Tokenises every part of the config's text; split -> documents, bytes, tokens, lengths, path."""
  from flaxlm.data import holdout, store
  from flaxlm.data import tokenizer as tokenizers

  terminal.phase('data', config.data.train)
  train = holdout.training(config.data)
  tokenizer = tokenizers.for_corpus(config, train)
  parts = {f'train/{name}': part for name, part in train.sources.items()} or {'train': train}
  parts |= holdout.validation(config.data)
  if config.data.test:
    parts['test'] = holdout.test(config.data)
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
