"""The likeliest tokens at each [MASK] of a text, by a masked language model.

  python -m flaxlm fill-mask --workdir=runs/bert --text='A truly [MASK] film.'
  python -m flaxlm fill-mask --workdir=runs/bert --text='A [MASK] and [MASK] film.' --num-beams=5

First each mask by itself, while all are masked; then, of a text with several, all of them jointly:
the surest is filled, the text read anew, and so on, with --num-beams fillings kept on the way.
`--json` prints one object a text.
"""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxlm import commandline, terminal
from flaxlm.errors import UserError, flag

MASK = '[MASK]'


def main(argv: Sequence[str]) -> None:
  args = _parse(argv)
  terminal.phase('init', f'checkpoint {args.checkpoint} of {args.workdir}')
  from flaxlm.decoding.infill import Filler
  from flaxlm.training.experiment import open_model

  experiment, params, _ = open_model(args.workdir, args.checkpoint)
  if not experiment.objective.predicts_masks:
    name = experiment.config.objective.name
    raise UserError(f'{args.workdir} was trained with the objective {name!r}, not masked_lm')
  tokenizer = experiment.tokenizer
  rows = [row_of(experiment, text) for text in args.text]
  filler = Filler(
    experiment.model, params, experiment.objective, tokenizer.mask_id,
    beams=args.num_beams, candidates=args.top_k,
  )  # fmt: skip
  terminal.phase('decode', f'{len(rows)} texts')
  for start in range(0, len(rows), filler.rows):
    batch = slice(start, start + filler.rows)
    for text, filled in zip(args.text[batch], filler.fill(rows[batch]), strict=True):
      terminal.close()
      record = {'text': text} | _record(tokenizer, filled, args.top_k)
      if args.json:
        print(json.dumps(record, ensure_ascii=False), flush=True)
      else:
        _print(record)


def row_of(experiment: Any, text: str) -> np.ndarray:
  """Token ids [L] of a text as the model was trained to read it, its masks among them."""
  tokenizer = experiment.tokenizer
  tokens = tokenizer.encode_marked(text, {MASK: tokenizer.mask_id})
  longest = experiment.objective.streams['inputs'].capacity - 2
  if len(tokens) > longest:
    raise UserError(f'--text: {len(tokens)} tokens, at most {longest} fit')
  return np.concatenate([[tokenizer.cls_id], tokens, [tokenizer.sep_id]]).astype(np.int32)


def _record(tokenizer: Any, filled: Any, top_k: int) -> dict[str, Any]:
  """What was found of a text, as JSON has it."""
  masks = []
  for position, ids, log_p in zip(filled.positions, filled.ids, filled.log_p, strict=True):
    candidates = [
      {'token': tokenizer.piece(int(id)), 'id': int(id), 'probability': math.exp(score)}
      for id, score in zip(ids[:top_k], log_p[:top_k], strict=True)
    ]
    masks.append({'position': int(position), 'candidates': candidates})
  fillings = [
    {
      'text': tokenizer.decode(filling.inputs),
      'tokens': [tokenizer.piece(int(id)) for id in filling.inputs[filled.positions]],
      'log_probability': filling.log_p,
    }
    for filling in filled.fillings
  ]
  return {'masks': masks, 'fillings': fillings}


def _print(record: dict[str, Any]) -> None:
  print(record['text'])
  for mask in record['masks']:
    for candidate in mask['candidates']:
      print(f'  {candidate["probability"]:.4f}  {candidate["token"]}')
    print()
  if len(record['masks']) > 1:
    for filling in record['fillings']:
      print(f'  {math.exp(filling["log_probability"]):.2e}  {filling["text"]}')


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = commandline.Parser(__doc__)
  commandline.add_run_flags(parser)
  parser.add_argument('--text', action='append', required=True, help=f'text with {MASK} in it')
  parser.add_argument('--top-k', type=int, default=5, help='candidates for each mask')
  parser.add_argument('--num-beams', type=int, default=4, help='joint fillings that are kept')
  parser.add_argument('--json', action='store_true', help='one JSON object a text')
  args = parser.parse(argv)
  for name in ('top_k', 'num_beams'):
    if getattr(args, name) < 1:
      raise UserError(f'{flag(name)}: must be at least 1')
  for text in args.text:
    if MASK not in text:
      raise UserError(f'--text: {text[:40]!r} has no {MASK}')
  return args
