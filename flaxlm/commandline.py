"""What every command shares: flags, `--config.a.b=value`, and errors in one line."""

import argparse
import contextlib
import errno
import logging
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from flaxlm import distributed, terminal
from flaxlm.errors import UserError, nearest

PREFIX = '--config.'


class Parser(argparse.ArgumentParser):
  """An ArgumentParser that takes whole flags only; its errors are UserErrors with the nearest flag.

  Flags are declared with hyphens, and may be given with underscores. `Parser(__doc__)` shows the
  file's docstring as help. Every command has `--debug`; one made with `overrides=True` also takes
  `--config.a.b=value`, as does `--config.a.b value`.
  """

  def __init__(self, description: str | None, overrides: bool = False):
    program = pathlib.PurePath(sys.argv[0]).name
    if program == '__main__.py':
      program = ' '.join(['python -m flaxlm', *sys.argv[1:2]])
    super().__init__(
      prog=program,
      description=description,
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    self._overrides = overrides
    self.add_argument('--debug', action='store_true', help='show the traceback of an error')
    if overrides:
      self.epilog = 'Fields of the config are set by --config.FIELD=VALUE.'

  def error(self, message: str) -> NoReturn:
    raise UserError(message.replace('the following arguments are required:', 'missing'))

  def parse(self, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the arguments after the command's name.

    Returns: a namespace with the declared flags and, with `overrides`, the attribute `overrides`:
      (dotted key, text) pairs in their order.

    Raises UserError for a flag that is not known, wrong or no UTF-8.
    """
    for word in argv:
      try:
        word.encode()
      except UnicodeEncodeError:  # Python keeps bytes that are no text as halves of pairs.
        raise UserError(f'not UTF-8: the argument {ascii(word)[:80]}') from None
    argv, overrides = self._take_overrides(list(argv)) if self._overrides else (list(argv), [])
    args, rest = self.parse_known_args(self._spelled(argv))
    if rest:
      raise UserError(f'unexpected argument {rest[0]!r}')
    if self._overrides:
      args.overrides = overrides
    return args

  def _take_overrides(self, argv: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Splits arguments into those of the parser and overrides."""
    rest, overrides = [], []
    while argv:
      word = argv.pop(0)
      if not word.startswith(PREFIX):
        rest.append(word)
        continue
      key, equals, text = word[len(PREFIX) :].partition('=')
      if not equals:
        if not argv or argv[0].startswith('--'):
          raise UserError(f'config.{key}: needs a value: {PREFIX}{key}=VALUE')
        text = argv.pop(0)
      overrides.append((key, text))
    return rest, overrides

  def _spelled(self, argv: Sequence[str]) -> list[str]:
    """The arguments with every flag as it was declared; an unknown one is a UserError.

    It is found here, before the parser trips over what it misses.
    """
    known = self._option_string_actions
    end = argv.index('--') if '--' in argv else len(argv)
    spelled = []
    for word in argv[:end]:
      if word.startswith('--'):
        name, equals, text = word.partition('=')
        declared = name.replace('_', '-')
        if declared not in known:
          valid = [flag for flag in known if flag.startswith('--')]
          if self._overrides:
            valid.append('--config.FIELD')
          raise UserError(f'unknown flag {name!r}{nearest(name, valid)}')
        word = declared + equals + text
      spelled.append(word)
    return [*spelled, *argv[end:]]


def add_run_flags(
  parser: argparse.ArgumentParser, checkpoint: str | None = 'latest', note: str = ''
) -> None:
  """Adds --workdir, the folder of a run, and --checkpoint, with its default and a note on that."""
  parser.add_argument('--workdir', required=True, type=os.path.expanduser, help='folder of the run')
  parser.add_argument(
    '--checkpoint', default=checkpoint, help=f'latest, best, average:N or a step{note}'
  )


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
  """Runs a command and returns its exit status.

  A UserError, or a file that cannot be opened, ends in one line on stderr and status 1, with its
  traceback under `--debug`. Anything else is a fault of the program and keeps its traceback. Of
  several processes, one that fails ends at once, so that the others do not wait for it, unless the
  error's attribute `everywhere` says that all of them have it.
  """
  debug = '--debug' in argv
  if not debug:
    # Libraries that log through absl tell users about their internals, and of errors they raise.
    logging.getLogger('absl').setLevel(logging.CRITICAL)
  try:
    status = main(argv) or 0
    distributed.leave()
    return status
  except BaseException as error:
    terminal.close()
    if getattr(error, 'everywhere', False):
      distributed.leave()  # From here on it ends like a process that was alone.
    status, line = _message(error)
    if not line and distributed.count() == 1:
      raise
    if debug or not line:
      traceback.print_exc()
    print(line or f'error: {error!r}', file=sys.stderr, flush=True)
    if distributed.count() > 1:
      distributed.fail(line or repr(error), status)
    return status
  finally:
    terminal.close()


def _message(error: BaseException) -> tuple[int, str]:
  """The exit status, and the line that tells all of an error; '' for a fault of the program."""
  if isinstance(error, UserError):
    return 1, f'error: {" ".join(str(error).split())}'
  if isinstance(error, OSError) and error.filename is not None:
    return 1, f'error: {error.filename}: {error.strerror}'
  if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
    return 1, f'error: {error.strerror} (--debug shows what was written)'
  if isinstance(error, BrokenPipeError):  # Whoever read the output has seen enough.
    with contextlib.suppress(OSError):
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE, 'the reader of the output is gone'
  if isinstance(error, KeyboardInterrupt):
    return 130, 'interrupted'
  if isinstance(error, SystemExit) and distributed.count() > 1:
    status = error.code if isinstance(error.code, int) else 1
    return status, f'process {distributed.index()} was stopped alone: status {status}'
  lost = distributed.lost_another(error)
  return (distributed.LOST, f'error: {lost}') if lost else (1, '')
