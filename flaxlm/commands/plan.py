"""Tells, without data, how large a run is, whether it fits, and how long a step takes on TPUs.

  python -m flaxlm plan --config=configs/gpt2.py:124m
  python -m flaxlm plan --config=configs/llama.py:2-7b --topology=v5e:16x16 --config.mesh=1,-1,1

No text is read and no tokenizer trained: the vocabulary has as many pieces as the recipe asks for,
or --vocab-size. The training step itself is compiled, for the devices that are here, or ahead of
time for a TPU slice (v4, v5e, v5p, v6e), which needs libtpu but no TPU. Where the run does not fit,
changes that would help are tried. docs/plans.md says how to read it; no TPU figure is measured.
"""

import contextlib
import json
from collections.abc import Sequence

from etils import epath

from flaxlm import commandline, terminal
from flaxlm.errors import UserError


def main(argv: Sequence[str]) -> int:
  parser = commandline.Parser(__doc__, overrides=True)
  parser.add_argument('--config', required=True, help='configs/NAME.py[:VARIANT]')
  parser.add_argument('--topology', default='', help='a TPU slice, such as v5e:16x16 or v5p:4x4x8')
  parser.add_argument('--vocab-size', type=int, help='of the tokenizer, where only text tells it')
  parser.add_argument(
    '--tries', type=int, default=3, help='changes to compile at most, if the run does not fit'
  )
  parser.add_argument(
    '--shapes', action='store_true', help='compile nothing: sizes and operations by formula'
  )
  parser.add_argument('--hlo', default='', help='a file to write the compiled program to, to study')
  parser.add_argument('--json', action='store_true', help='a JSON object')
  args = parser.parse(argv)
  if args.shapes and args.hlo:
    raise UserError('--hlo: there is no program with --shapes, which compiles nothing')
  from flaxlm.plan import report, topology

  chip, devices = topology.devices(args.topology) if args.topology else (None, None)
  plans, left = _attempts(args, chip, devices)
  if args.hlo and plans[-1].program:
    epath.Path(args.hlo).write_text(plans[-1].program)
  elif args.hlo:
    terminal.warn('--hlo: the step does not fit, so that there is no program')
  if args.json:
    found = {'config': args.config, 'topology': args.topology or None}
    found |= {'attempts': [report.as_dict(plan) for plan in plans], 'change': plans[-1].change}
    print(json.dumps({**found, 'fits': plans[-1].fits}, indent=2))
  else:
    print('\n'.join(_text(plans, left)))
  return 0 if plans[-1].fits in (True, None) else 1


def _attempts(args, chip, devices):
  """The plan of what was asked for and, while it does not fit, of changes; and what is left."""
  from flaxlm.plan import advice, report

  plans, change = [], {}
  built = _built(args, devices, change)
  while True:
    what = ' '.join(f'--config.{key}={value}' for key, value in change.items())
    if not args.shapes:
      terminal.phase('compile', f'the step for {built.mesh.size} devices {what}'.rstrip())
    plans.append(report.make(built, chip, change, args.shapes))
    if plans[-1].fits in (True, None):
      return plans, None
    more, following = _next(args, devices, change, built, plans[-1])
    if not more or len(plans) > args.tries:
      return plans, (advice.devices_needed(plans[-1]), more)
    change, built = change | more, following


def _built(args, devices, change):
  from flaxlm.config import recipe
  from flaxlm.plan import abstract

  config = recipe.load(args.config, [*args.overrides, *change.items()])
  return abstract.experiment(config, args.vocab_size, devices)


def _next(args, devices, change, built, made):
  """The next change that can be built, and what it builds; ({}, None) if none is left."""
  from flaxlm.plan import advice

  for more in advice.changes(built, made):
    with contextlib.suppress(UserError):
      return more, _built(args, devices, change | more)
  return {}, None


def _text(plans, left) -> list[str]:
  from flaxlm.plan import report

  lines = []
  for plan in plans:
    if plan.change:
      flags = ' '.join(f'--config.{key}={value}' for key, value in plan.change.items())
      lines += ['', f'with {flags}']
    lines += report.lines(plan)
  if left is not None:
    needed, more = left
    lines += ['', 'No change that was tried makes it fit.']
    if more:
      lines.append('Next: ' + ' '.join(f'--config.{key}={value}' for key, value in more.items()))
    lines.append(f'The state alone needs {needed} such devices with every parameter sharded.')
  return lines
