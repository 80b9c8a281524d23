"""Trains a tokenizer on a text.

  python -m flaxlm tokenizer --input reviews.tsv --output tokenizers/reviews --vocab-size 8192
  python -m flaxlm tokenizer --input 'books/*.txt' --documents file --output tokenizers/books

A recipe uses it with --config.tokenizer.path=DIR; one without a path trains its own in the same
way, on the training part of its text and with its own options. The defaults here are those of
config.tokenizer: --sentinels 0 leaves out the 100 that only T5 needs. The same text and options
give the same tokenizer.
"""

from collections.abc import Sequence

from etils import epath

from flaxlm import commandline, terminal
from flaxlm.errors import UserError


def main(argv: Sequence[str]) -> None:
  from flaxlm.commands import _text

  parser = commandline.Parser(__doc__)
  parser.add_argument('--input', required=True, help='file, glob, tfds:NAME[/SPLIT] or embedded')
  parser.add_argument('--output', required=True, help='folder to write')
  _text.add_flags(parser)
  args = parser.parse(argv)
  if (epath.Path(args.output) / 'tokenizer.json').exists():
    raise UserError(f'{args.output} holds a tokenizer already; choose another folder')
  config = _text.config(args, args.input)
  terminal.phase('data', args.input)
  from flaxlm.data import splits
  from flaxlm.data import tokenizer as tokenizers
  from flaxlm.data.tokenizer_training import spread_sample

  documents = splits.everything(config.data)
  terminal.phase('data', f'training a {config.tokenizer.name} tokenizer on {args.input}')
  tokenizer = tokenizers.train_on(config.tokenizer, documents)
  tokenizer.save(args.output)
  sample = spread_sample(documents.texts(), 1_000_000)
  ids = [tokenizer.encode(text) for text in sample]
  num_bytes = sum(len(text.encode()) for text in sample)
  tokens = sum(map(len, ids))
  print(f'{tokenizer.vocab_size} tokens, {num_bytes / tokens:.2f} bytes of text a token')
  longest = max(ids, key=len)[:16]
  print('as in: ' + ' '.join(tokenizer.piece(id) for id in longest).replace('\n', '\\n'))
  print(f'use it with --config.tokenizer.path={args.output}')
