"""`python -m flaxlm COMMAND [flags]`: runs flaxlm/commands/COMMAND.py."""

import ast
import importlib
import sys
from collections.abc import Sequence

from etils import epath

from flaxlm import commandline, host
from flaxlm.errors import UserError, nearest


def summaries() -> dict[str, str]:
  """Each command (dashes for underscores) and the first line of its file's docstring."""
  folder = epath.Path(__file__).parent / 'commands'
  found = {}
  for file in sorted(folder.glob('*.py')):
    if not file.name.startswith('_'):
      # Parsed, not imported: some commands need libraries that take seconds.
      text = ast.get_docstring(ast.parse(file.read_text())) or ''
      found[file.stem.replace('_', '-')] = text.partition('\n')[0]
  return found


def usage() -> str:
  """One line a command."""
  commands = summaries()
  width = max(map(len, commands), default=0)
  lines = [f'  {name:{width}}  {line}' for name, line in commands.items()]
  head = 'usage: python -m flaxlm COMMAND [flags]\n\ncommands:'
  tail = '\n`python -m flaxlm COMMAND --help` tells more. Training: train.py; evaluation: eval.py.'
  return '\n'.join([head, *lines, tail])


def main(argv: Sequence[str]) -> int | None:
  """Dispatches to the command's `main(argv)`."""
  if not argv or argv[0] in ('--help', '-h', 'help'):
    print(usage())
    return 0 if argv else 1
  name = argv[0].replace('_', '-')
  if name not in summaries():
    raise UserError(f'there is no command {argv[0]!r}{nearest(name, summaries())}')
  module = importlib.import_module(f'flaxlm.commands.{name.replace("-", "_")}')
  return module.main(argv[1:])


if __name__ == '__main__':
  host.prepare()
  sys.exit(commandline.run(main, sys.argv[1:]))
