"""Continue prompts with a decoder, or answer them with an encoder-decoder.

  python -m flaxlm generate --workdir=runs/gpt --prompt='The film' --temperature=0.8 --top-k=40
  python -m flaxlm generate --workdir=runs/t5 --prompt='The film <extra_id_0> from start to end.'

Without a prompt the text starts from nothing. `--json` prints one object a line.
"""

import json
from collections.abc import Sequence
from os.path import expanduser
from typing import Any

import numpy as np

from flaxlm import commandline, terminal
from flaxlm.errors import UserError


def main(argv: Sequence[str]) -> None:
  args = _parse(argv)
  terminal.phase('init', f'checkpoint {args.checkpoint} of {args.workdir}')
  from flaxlm import decoding
  from flaxlm.training.experiment import open_model

  experiment, params, _ = open_model(args.workdir, args.checkpoint)
  name = experiment.config.objective.name
  if not hasattr(experiment.objective, 'prompt'):
    raise UserError(f'{args.workdir} was trained with the objective {name!r}: it does not generate')
  texts = [text for text in args.prompt or [''] for _ in range(args.num_samples)]
  tokenizer = experiment.tokenizer
  given = [experiment.objective.prompt(text) for text in texts]
  prompts, sources = [prompt.inputs for prompt in given], None
  if given[0].encoder_inputs is not None:
    sources = [prompt.encoder_inputs for prompt in given]
    _check_lengths(texts, sources, experiment.config.max_length)
  sampling = decoding.Sampling(
    args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.seed
  )
  terminal.phase('decode', f'{len(prompts)} texts')
  results = decoding.generate(
    experiment.model, params, prompts, sampling, given[0].eos_id, sources, given[0].prefix
  )
  terminal.close()
  for text, prompt, tokens in zip(texts, prompts, results, strict=True):
    if sources is None:
      # Only behind its prompt is a token decoded as it stands there, with the space before it.
      output = tokenizer.decode([*prompt, *tokens])[len(tokenizer.decode(prompt)) :]
    else:
      # Sentinels say which gap of the prompt the words after them fill.
      output = tokenizer.decode(tokens, keep_special=True)
    if args.json:
      record = {'prompt': text, 'output': output, 'tokens': tokens.tolist()}
      print(json.dumps(record, ensure_ascii=False))
    else:
      print(text + output if sources is None else f'{text}\n-> {output}')


def _parse(argv: Sequence[str]) -> Any:
  parser = commandline.Parser(__doc__)
  parser.add_argument('--workdir', required=True, type=expanduser, help='folder of the run')
  parser.add_argument('--checkpoint', default='latest', help='latest, best, average:N or a step')
  parser.add_argument('--prompt', action='append', help='may be given several times')
  parser.add_argument('--num-samples', type=int, default=1, help='texts for each prompt')
  parser.add_argument('--max-new-tokens', type=int, default=100)
  parser.add_argument('--temperature', type=float, default=1.0, help='0: always the likeliest')
  parser.add_argument('--top-k', type=int, default=0, help='of the k likeliest tokens; 0: of all')
  parser.add_argument('--top-p', type=float, default=1.0, help='of the likeliest tokens up to p')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--json', action='store_true', help='one JSON object a text')
  args = parser.parse(argv)
  for name, valid, wanted in (
    ('num-samples', args.num_samples >= 1, 'at least 1'),
    ('max-new-tokens', args.max_new_tokens >= 1, 'at least 1'),
    ('temperature', args.temperature >= 0, 'at least 0'),
    ('top-k', args.top_k >= 0, 'at least 0'),
    ('top-p', 0 < args.top_p <= 1, 'above 0 and at most 1'),
    ('seed', args.seed >= 0, 'at least 0'),
  ):
    if not valid:
      raise UserError(f'--{name}: must be {wanted}')
  return args


def _check_lengths(texts: Sequence[str], sources: Sequence[np.ndarray], longest: int) -> None:
  """UserError for a text that is longer than the rows the encoder was trained on."""
  for text, ids in zip(texts, sources, strict=True):
    if len(ids) > longest:
      over = len(ids) - longest
      raise UserError(f'--prompt: {text[:30]!r}... has {over} tokens more than fit')
