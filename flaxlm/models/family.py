"""Which family a trunk belongs to: what batch keys it reads and which objectives suit it."""

from collections.abc import Sequence

from flaxlm.config.tree import load_module
from flaxlm.errors import UserError

FAMILIES = ('encoder', 'decoder', 'encoder_decoder')


def family_of(name: str) -> str:
  """FAMILY of the trunk that `config.model.name` names; UserError for the user's own without it."""
  family = getattr(load_module('flaxlm.models', name), 'FAMILY', None)
  if family not in FAMILIES:
    raise UserError(f'module {name!r}: FAMILY must be one of {", ".join(FAMILIES)}, not {family!r}')
  return family


def check(name: str, families: Sequence[str], what: str) -> None:
  """Raises UserError if the trunk `name` is of none of the families that `what` needs."""
  family = family_of(name)
  if family not in families:
    raise UserError(
      f'{what} needs a model of family {" or ".join(families)}, but config.model.name={name!r} is '
      f'of family {family!r}'
    )


def has_cls_last(name: str) -> bool:
  """Whether a text ends with [CLS], and does not begin with it: CLS_LAST of the trunk's file."""
  return getattr(load_module('flaxlm.models', name), 'CLS_LAST', False)


def at_end(name: str) -> bool:
  """Whether the last token of a text stands for it: all that a decoder has read, or a [CLS]."""
  return family_of(name) == 'decoder' or has_cls_last(name)


def has_two_streams(name: str) -> bool:
  """Whether the trunk reads an `order` of factorisation: TWO_STREAMS of its file."""
  return getattr(load_module('flaxlm.models', name), 'TWO_STREAMS', False)
