"""What becomes of a labelled row that cannot be used: it stops the run, or is skipped."""

from collections import Counter
from collections.abc import Callable, Mapping

from flaxlm import terminal
from flaxlm.errors import UserError

Handler = Callable[[UserError], None]


def stop(error: UserError) -> None:
  """A handler that stops the run at the first bad row."""
  raise error


class BadRows:
  """The rows of each set that were left out, where `config.data.on_bad_row` allows that.

  policy: 'error' or 'skip'.
  """

  def __init__(self, policy: str):
    self._policy = policy
    self._counts: Counter[str] = Counter()
    self._first: dict[str, UserError] = {}

  def of(self, name: str) -> Handler:
    """What a reader of the set `name` calls with a row's mistake, and goes on with the next row."""
    return lambda error: self._add(name, error)

  def _add(self, name: str, error: UserError) -> None:
    if self._policy == 'error':
      raise error
    self._counts[name] += 1
    self._first.setdefault(name, error)

  @property
  def counts(self) -> Mapping[str, int]:
    """Set -> rows left out; sets without any are absent."""
    return dict(self._counts)

  def report(self) -> None:
    """Says how many rows of each set were left out, and why the first was."""
    for name, number in self._counts.items():
      rows = 'row was' if number == 1 else 'rows were'
      terminal.warn(f'{name}: {number} {rows} skipped; the first: {self._first[name]}')
