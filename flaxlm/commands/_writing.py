"""What the commands share that write texts: how tokens are chosen, as flags."""

import argparse
import dataclasses
from typing import Any

from flaxlm.errors import UserError, flag

SAMPLING = ('temperature', 'top_k', 'top_p', 'min_p')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """What the flags of `add_flags` ask for. max_new_tokens None: what the run's config says.

  A flag whose default stands here is None if it was not given, so that it is an error to give one
  that would not be read.
  """

  max_new_tokens: int | None = None
  temperature: float
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  no_repeat_ngram: int
  stop: list[str]
  num_beams: int
  length_penalty: float = 0.6
  num_best: int = 1
  seed: int = 0
  batch_size: int

  @classmethod
  def of(cls, args: argparse.Namespace) -> 'Options':
    """Those of parsed flags.

    Raises:
      UserError: names a flag that is out of range, or was given and would not be read.
    """
    values = {name: getattr(args, name) for name in _NAMES if getattr(args, name) is not None}
    options = cls(**{'temperature': args.default_temperature} | values)
    _check_read(args, options)
    _check_ranges(options)
    return options


_NAMES = tuple(field.name for field in dataclasses.fields(Options))


def add_flags(
  parser: argparse.ArgumentParser, temperature: float, max_new_tokens: int | None
) -> None:
  """Adds --temperature, --num-beams, ... with these defaults."""
  add = parser.add_argument
  longest = max_new_tokens or 'that of evaluation'
  add('--max-new-tokens', type=int, default=max_new_tokens, help=f'longest text ({longest})')
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
  add('--batch-size', type=int, default=16, help='texts written at once (16)')
  parser.set_defaults(default_temperature=temperature)


def given(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
  """Flags of writing, other than --batch-size, that are not at their defaults."""
  different = [name for name in _NAMES if getattr(args, name) != parser.get_default(name)]
  return [flag(name) for name in different if name != 'batch_size']


def _check_read(args: argparse.Namespace, options: Options) -> None:
  searching = options.num_beams > 0
  if searching:
    unread, why = (*SAMPLING, 'seed'), 'not read by a beam search, which does not draw'
  else:
    unread, why = ('length_penalty', 'num_best'), 'of a beam search only'
  _refuse(args, unread, why)
  if not searching and options.temperature == 0:
    why = 'not read at temperature 0, which takes the likeliest token; set --temperature'
    _refuse(args, (*SAMPLING[1:], 'seed'), why)


def _refuse(args: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
  for name in names:
    if getattr(args, name) is not None:
      raise UserError(f'{flag(name)}: {why}')


def _check_ranges(options: Options) -> None:
  o = options
  for name, valid, wanted in (
    ('max_new_tokens', o.max_new_tokens is None or o.max_new_tokens >= 1, 'at least 1'),
    # What is less is 0 to the device, and scores over it are no numbers.
    ('temperature', o.temperature == 0 or o.temperature >= 1e-30, '0, or at least 1e-30'),
    ('top_k', o.top_k >= 0, 'at least 0'),
    ('top_p', 0 < o.top_p <= 1, 'above 0 and at most 1'),
    ('min_p', 0 <= o.min_p <= 1, 'from 0 to 1'),
    ('no_repeat_ngram', o.no_repeat_ngram >= 0, 'at least 0'),
    ('stop', all(o.stop), 'a text'),
    ('num_beams', o.num_beams >= 0, 'at least 0'),
    ('length_penalty', o.length_penalty >= 0, 'at least 0'),
    ('num_best', 1 <= o.num_best <= max(o.num_beams, 1), 'from 1 to --num-beams'),
    ('seed', 0 <= o.seed < 2**31, 'from 0 to 2^31 - 1'),
    ('batch_size', o.batch_size >= 1, 'at least 1'),
  ):
    if not valid:
      raise UserError(f'{flag(name)}: must be {wanted}')


def how(options: Options, max_new_tokens: int) -> Any:
  """The Sampling or the Beam that the options describe."""
  from flaxlm.decoding.beam import Beam
  from flaxlm.decoding.sampling import Sampling

  o = options
  if o.num_beams:
    return Beam(o.num_beams, max_new_tokens, o.length_penalty, o.no_repeat_ngram)
  return Sampling(
    max_new_tokens, o.temperature, o.top_k, o.top_p, o.min_p, o.no_repeat_ngram, o.seed
  )


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
