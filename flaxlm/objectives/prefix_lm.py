"""Prefix language modelling: a decoder that reads the beginning of a text in both directions.

Raffel et al. 2020, sections 3.2.1 and 3.3.1. Each piece of text is cut at a random place: tokens
of the prefix see each other, the rest is read from left to right, and the loss is on the rest.
"""

import dataclasses

import numpy as np

from flaxlm.config.field import field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.data.packing import Piece
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError
from flaxlm.objectives import causal_lm
from flaxlm.objectives.base import Prompt


@dataclasses.dataclass(frozen=True)
class Config(causal_lm.Config):
  """Prefix language modelling."""

  min_prefix: float = field(0.0, 'smallest share of a piece that is prefix', low=0.0, high=1.0)
  max_prefix: float = field(
    1.0, 'largest share; each piece draws between the two. 0: causal modelling', low=0.0, high=1.0
  )

  def check(self) -> None:
    if self.min_prefix > self.max_prefix:
      raise UserError(f'min_prefix: must not exceed max_prefix={self.max_prefix}')


class Objective(causal_lm.Objective):
  """The loss is the mean over all targets behind a prefix."""

  likelihood = False

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    super().__init__(config, tokenizer)
    stream = self.streams['inputs']
    self.streams = {'inputs': dataclasses.replace(stream, keys=(*stream.keys, 'prefix'))}

  def features(self, piece: Piece, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """As of a causal model, and prefix [n]: 1 for the inputs that all inputs of the piece see."""
    features = super().features(piece, rng)
    n = len(features['inputs'])
    c = self.config
    share = c.min_prefix + (c.max_prefix - c.min_prefix) * rng.random()
    # The first input is always prefix, and the last target never is, so that something is learned.
    prefix = 1 + min(int(share * n), max(n - 1, 0))
    features['prefix'] = (np.arange(n) < prefix).astype(np.int32)
    # The target of input i is input i + 1, which a prefix token would see.
    features['target_weights'][: prefix - 1] = 0.0
    return features

  def prompt(self, text: str) -> Prompt:
    """To continue a text, which is all prefix, unless none was learned."""
    return dataclasses.replace(super().prompt(text), prefix=self.config.max_prefix > 0)
