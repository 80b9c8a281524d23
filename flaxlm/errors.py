"""Mistakes of the user's, as one readable line."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
  """A mistake in a config, a file or a checkpoint.

  Commands print its message as one line, without a traceback, and exit with status 1. The message
  names the culprit (key, file and line, leaf) and, where there is one, the nearest valid choice.
  """


def first_line(error: BaseException) -> str:
  """Of the message of a library's error, at most 200 characters; its type where it has none."""
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def flag(name: str) -> str:
  """The flag of an argument as messages and the help spell it: 'top_k' -> '--top-k'."""
  return f'--{name.replace("_", "-")}'


def nearest(word: str, choices: Iterable[str]) -> str:
  """Returns `' (did you mean X?)'` for the choice nearest to `word`, or lists a few choices."""
  choices = [str(choice) for choice in choices]
  if guess := _guess(word, choices):
    return guess
  if not choices:
    return ''
  shown = ', '.join(choices[:12]) + (', ...' if len(choices) > 12 else '')
  return f' (valid: {shown})'


def nearest_of_all(word: str, choices: Iterable[str], what: str) -> str:
  """The nearest choice, and all of them, as `; WHAT are A, B`; '' without any."""
  choices = [str(choice) for choice in choices]
  return f'{_guess(word, choices)}; {what} are {", ".join(choices)}' if choices else ''


def _guess(word: str, choices: Sequence[str]) -> str:
  close = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.5)
  return f' (did you mean {close[0]!r}?)' if close else ''
