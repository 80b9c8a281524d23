"""The likeliest tokens at each [MASK] of a text, by a masked language model.

  python -m flaxlm fill-mask --workdir=runs/bert --text='A truly [MASK] film.'

`--json` prints one object a text.
"""

import json
from collections.abc import Sequence
from os.path import expanduser
from typing import Any

import numpy as np

from flaxlm import commandline, terminal
from flaxlm.errors import UserError

MASK = '[MASK]'


def main(argv: Sequence[str]) -> None:
  parser = commandline.Parser(__doc__)
  parser.add_argument('--workdir', required=True, type=expanduser, help='folder of the run')
  parser.add_argument('--checkpoint', default='latest', help='latest, best, average:N or a step')
  parser.add_argument('--text', action='append', required=True, help=f'text with {MASK} in it')
  parser.add_argument('--top-k', type=int, default=5, help='candidates for each mask')
  parser.add_argument('--json', action='store_true', help='one JSON object a text')
  args = parser.parse(argv)
  if args.top_k < 1:
    raise UserError('--top-k: must be at least 1')
  for text in args.text:
    if MASK not in text:
      raise UserError(f'--text: {text[:40]!r} has no {MASK}')
  terminal.phase('init', f'checkpoint {args.checkpoint} of {args.workdir}')
  from flaxlm.training.experiment import open_model

  experiment, params, _ = open_model(args.workdir, args.checkpoint)
  if experiment.config.objective.name != 'masked_lm':
    name = experiment.config.objective.name
    raise UserError(f'{args.workdir} was trained with the objective {name!r}, not masked_lm')
  for text in args.text:
    masks = [
      _candidates(experiment, *found, args.top_k) for found in _predict(experiment, params, text)
    ]
    terminal.close()
    if args.json:
      print(json.dumps({'text': text, 'masks': masks}, ensure_ascii=False))
      continue
    print(text)
    for mask in masks:
      for candidate in mask['candidates']:
        print(f'  {candidate["probability"]:.4f}  {candidate["token"]}')


def _predict(experiment: Any, params: Any, text: str) -> list[tuple[int, np.ndarray]]:
  """(position in the row, probabilities [V]) of each mask."""
  import jax

  from flaxlm import decoding
  from flaxlm.data import packing

  tokenizer, objective = experiment.tokenizer, experiment.objective
  if tokenizer.pieces_hold_spaces:
    # Its tokens carry the space before them, so that the mask stands for it too.
    text = text.replace(' ' + MASK, MASK)
  tokens = tokenizer.encode_marked(text, {MASK: tokenizer.mask_id})
  longest = objective.streams['inputs'].capacity - 2
  if len(tokens) > longest:
    raise UserError(f'--text: {len(tokens)} tokens, at most {longest} fit')
  inputs = np.concatenate([[tokenizer.cls_id], tokens, [tokenizer.sep_id]]).astype(np.int32)
  features = {
    key: np.zeros(0, packing.dtype_of(key))
    for stream in objective.streams.values()
    for key in stream.keys
  }
  features |= {'inputs': inputs, 'token_type_ids': np.zeros_like(inputs)}
  batch = packing.pack_rows([[features]], objective.streams)
  positions = np.flatnonzero(inputs == tokenizer.mask_id)
  batch['target_positions'] = positions[None].astype(np.int32)
  outputs, _ = jax.jit(experiment.model.apply)({'params': params}, batch)
  probabilities = jax.nn.softmax(decoding.logits(outputs['mlm']))[0]
  return list(zip(positions.tolist(), np.asarray(probabilities), strict=True))


def _candidates(experiment: Any, position: int, probabilities: np.ndarray, top_k: int) -> dict:
  """The mask's position among the tokens, and its likeliest tokens."""
  tokenizer = experiment.tokenizer
  best = np.argsort(-probabilities, kind='stable')[:top_k]
  return {
    'position': position,
    'candidates': [
      {'token': tokenizer.piece(int(i)), 'id': int(i), 'probability': float(probabilities[i])}
      for i in best
    ],
  }
