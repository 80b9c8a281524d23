"""What the commands share that write texts: how tokens are chosen, as flags."""

import argparse
from typing import Any

from flaxlm.errors import UserError

SAMPLING = ('temperature', 'top_k', 'top_p', 'min_p')


def add_flags(
  parser: argparse.ArgumentParser, temperature: float, max_new_tokens: int | None
) -> None:
  """Adds --temperature, --num-beams, ... with these defaults."""
  add = parser.add_argument
  add('--max-new-tokens', type=int, default=max_new_tokens, help='longest continuation')
  add('--temperature', type=float, help=f'0: always the likeliest token ({temperature:g})')
  add('--top-k', type=int, help='of the k likeliest tokens; 0: of all')
  add('--top-p', type=float, help='of the likeliest tokens up to probability p')
  add('--min-p', type=float, help='of tokens at least this share as likely as the likeliest')
  add('--no-repeat-ngram', type=int, default=0, help='no n tokens come twice; 0: they may')
  add('--stop', action='append', default=[], help='a text ends before this; may be repeated')
  add('--num-beams', type=int, default=0, help='beam search for the likeliest text; 0: none')
  add('--length-penalty', type=float, help='alpha of ((5 + n) / 6)^alpha in a beam search (0.6)')
  add('--num-best', type=int, help='texts of a beam search that are shown, best first (1)')
  add('--seed', type=int, help='of what is drawn (0)')
  add('--batch-size', type=int, default=16, help='texts at once')
  parser.set_defaults(default_temperature=temperature)


def given(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
  """Flags of writing, other than --batch-size, that are not at their defaults."""
  names = (
    'max_new_tokens', *SAMPLING, 'no_repeat_ngram', 'stop', 'num_beams', 'length_penalty',
    'num_best', 'seed',
  )  # fmt: skip
  different = [name for name in names if getattr(args, name) != parser.get_default(name)]
  return [name.replace('_', '-') for name in different]


def check(args: argparse.Namespace) -> None:
  """UserError, naming the flag, for a value that is out of range or would not be read."""
  searching = args.num_beams > 0
  unread = (*SAMPLING, 'seed') if searching else ('length_penalty', 'num_best')
  for name in unread:
    if getattr(args, name) is not None:
      how = 'a beam search, which does not draw' if searching else 'a beam search only'
      raise UserError(f'--{name.replace("_", "-")}: {"not read by" if searching else "of"} {how}')
  given = lambda name, default: default if getattr(args, name) is None else getattr(args, name)
  args.temperature = given('temperature', args.default_temperature)
  if not searching and args.temperature == 0:
    for name in (*SAMPLING[1:], 'seed'):
      if getattr(args, name) is not None:
        raise UserError(
          f'--{name.replace("_", "-")}: not read at temperature 0, which takes the likeliest '
          'token; set --temperature'
        )
  args.top_k, args.top_p, args.min_p = given('top_k', 0), given('top_p', 1.0), given('min_p', 0.0)
  args.seed = given('seed', 0)
  args.length_penalty, args.num_best = given('length_penalty', 0.6), given('num_best', 1)
  for name, valid, wanted in (
    ('max-new-tokens', args.max_new_tokens is None or args.max_new_tokens >= 1, 'at least 1'),
    # What is less is 0 to the device, and scores over it are no numbers.
    ('temperature', args.temperature == 0 or args.temperature >= 1e-30, '0, or at least 1e-30'),
    ('top-k', args.top_k >= 0, 'at least 0'),
    ('top-p', 0 < args.top_p <= 1, 'above 0 and at most 1'),
    ('min-p', 0 <= args.min_p <= 1, 'from 0 to 1'),
    ('no-repeat-ngram', args.no_repeat_ngram >= 0, 'at least 0'),
    ('stop', all(args.stop), 'a text'),
    ('num-beams', args.num_beams >= 0, 'at least 0'),
    ('length-penalty', args.length_penalty >= 0, 'at least 0'),
    ('num-best', 1 <= args.num_best <= max(args.num_beams, 1), 'from 1 to --num-beams'),
    ('seed', 0 <= args.seed < 2**31, 'from 0 to 2^31 - 1'),
    ('batch-size', args.batch_size >= 1, 'at least 1'),
  ):
    if not valid:
      raise UserError(f'--{name}: must be {wanted}')


def how(args: argparse.Namespace, max_new_tokens: int) -> Any:
  """The Sampling or the Beam that the flags describe."""
  from flaxlm.decoding.beam import Beam
  from flaxlm.decoding.sampling import Sampling

  if args.num_beams:
    return Beam(args.num_beams, max_new_tokens, args.length_penalty, args.no_repeat_ngram)
  return Sampling(
    max_new_tokens, args.temperature, args.top_k, args.top_p, args.min_p,
    args.no_repeat_ngram, args.seed,
  )  # fmt: skip


def writer(experiment: Any, params: Any, workdir: str) -> Any:
  """The Writer of a run; UserError if its objective does not write."""
  from flaxlm.decoding.cache import Reader
  from flaxlm.decoding.text import Writer

  if not experiment.objective.prompt:
    name = experiment.config.objective.name
    raise UserError(f'{workdir} was trained with the objective {name!r}: it does not generate')
  reader = Reader.of(experiment.model, params, experiment.objective)
  return Writer(reader, experiment.objective, experiment.tokenizer, experiment.config.max_length)


def record(output: Any) -> dict[str, Any]:
  """An Output as JSON has it."""
  found = {'output': output.text, 'tokens': output.tokens.tolist(), 'finish': output.finish}
  if output.score is not None:
    found |= {'log_probability': round(output.log_probability, 6), 'score': round(output.score, 6)}
  return found
