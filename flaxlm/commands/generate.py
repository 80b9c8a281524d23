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
  from flaxlm.models.family import family_of
  from flaxlm.training.experiment import open_model

  experiment, params, _ = open_model(args.workdir, args.checkpoint)
  name = experiment.config.objective.name
  family = family_of(experiment.config.model.name)
  if name not in ('causal_lm', 'span_corruption'):
    raise UserError(f'{args.workdir} was trained with the objective {name!r}: it does not generate')
  texts = [text for text in args.prompt or [''] for _ in range(args.num_samples)]
  tokenizer = experiment.tokenizer
  prompts, sources, eos_id = _inputs(experiment, family, texts)
  sampling = decoding.Sampling(
    args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.seed
  )
  terminal.phase('decode', f'{len(prompts)} texts')
  results = decoding.generate(experiment.model, params, prompts, sampling, eos_id, sources)
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
  parser.add_argument('--checkpoint', default='latest', help='latest, best or a step')
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


def _inputs(
  experiment: Any, family: str, texts: Sequence[str]
) -> tuple[list[np.ndarray], list[np.ndarray] | None, int | None]:
  """(decoder prompts, encoder inputs or None, the token that ends a text or None)."""
  tokenizer = experiment.tokenizer
  if family == 'encoder_decoder':
    marks = {f'<extra_id_{i}>': id for i, id in enumerate(tokenizer.sentinel_ids)}
    longest = experiment.config.max_length - 1
    sources = [tokenizer.encode_marked(text, marks) for text in texts]
    for text, ids in zip(texts, sources, strict=True):
      if len(ids) > longest:
        raise UserError(f'--prompt: {text[:30]!r}... has {len(ids)} tokens, at most {longest} fit')
    sources = [np.append(ids, tokenizer.eos_id) for ids in sources]
    return [np.array([tokenizer.bos_id])] * len(texts), sources, tokenizer.eos_id
  if experiment.config.objective.boundaries:
    prompts = [np.append(tokenizer.bos_id, tokenizer.encode(text)) for text in texts]
    return prompts, None, tokenizer.eos_id
  # Trained without BOS: a line end is the nearest thing to a beginning.
  return [tokenizer.encode(text or '\n') for text in texts], None, None
