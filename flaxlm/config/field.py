"""Config fields: a default, one line of documentation, and what values are allowed.

Every config node is a frozen dataclass whose fields are made by `field`. The same declaration
serves the recipe (a locked ConfigDict), the command line, `config.json`, the checks and the
liveness test.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

FLAG = 'flaxlm'
# Among the values of `Rules.when`: anything but empty.
SET = '(set)'


@dataclasses.dataclass(frozen=True)
class Rules:
  """What a field allows. Bounds: `low`/`high` inclusive, `above`/`below` exclusive.

  `when` maps sibling fields, or fields of the whole experiment ('config.task.name'), to the values
  under which this field is read; setting it under any other value is an error, because it would
  silently do nothing. `derived` fields are filled in by the program and cannot be set.
  """

  doc: str
  choices: tuple[Any, ...] | None = None
  low: float | None = None
  high: float | None = None
  above: float | None = None
  below: float | None = None
  when: Mapping[str, tuple[Any, ...]] | None = None
  derived: bool = False


def field(default: Any, doc: str, *, choices: Sequence[Any] | None = None, **rules: Any) -> Any:
  """Declares a config field; `rules` are those of `Rules`."""
  metadata = {FLAG: Rules(doc, tuple(choices) if choices is not None else None, **rules)}
  if dataclasses.is_dataclass(default) and not isinstance(default, type):
    return dataclasses.field(default_factory=lambda: default, metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


def met(value: Any, allowed: tuple[Any, ...]) -> bool:
  """Whether the value of a field is one of those that `Rules.when` names for it."""
  return value in allowed or (SET in allowed and bool(value))


def nearest_divisor(number: int, wanted: int) -> int:
  """Of the divisors of `number`, the one nearest to `wanted`."""
  divisors = (d for d in range(1, number + 1) if number % d == 0)
  return min(divisors, key=lambda divisor: abs(divisor - wanted))


def rules_of(dataclass_field: dataclasses.Field) -> Rules:
  """The rules a field was declared with."""
  return dataclass_field.metadata[FLAG]


@dataclasses.dataclass(frozen=True)
class Named:
  """Base of nodes that name a file: a module of flaxlm, or a dotted path of the user's."""

  name: str = field('', 'file that implements this node: a module name or a dotted path')
