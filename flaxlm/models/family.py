"""Which family a trunk belongs to: what batch keys it reads and which objectives suit it."""

from flaxlm.config.tree import load_module

FAMILIES = ('encoder', 'decoder', 'encoder_decoder')


def family_of(name: str) -> str:
  """FAMILY of the trunk that `config.model.name` names, the user's own included."""
  return load_module('flaxlm.models', name).FAMILY
