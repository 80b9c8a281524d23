"""Causal language modelling: every token from those before it (GPT).

A document is read as BOS, tokens, EOS: its first token is predicted from BOS and its end is
predicted too, so the summed loss is -log p(document), and bits per byte follow from it.
"""

import dataclasses

import numpy as np

from flaxlm.config.field import field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.data.packing import Piece, Stream
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError
from flaxlm.objectives import losses
from flaxlm.objectives.base import Prompt
from flaxlm.objectives.next_token import NextToken


@dataclasses.dataclass(frozen=True)
class Config(losses.VocabLossConfig):
  """Causal language modelling."""

  boundaries: bool = field(True, 'documents begin after BOS and end with EOS; False: bare text')


class Objective(NextToken):
  """The loss is the mean over all target tokens."""

  families = ('decoder',)
  packing = 'concatenate'
  likelihood = True

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    self.config = config.objective
    self.tokenizer = tokenizer
    self.span = config.max_length
    # A document of n tokens has n + 1 targets between BOS and EOS, and n - 1 when bare.
    self.gap = 1 if self.config.boundaries else -1
    keys = ('inputs', 'targets', 'target_weights')
    self.streams = {'inputs': Stream(self.span, keys, per_token=1, per_item=1, prefix='')}

  def features(self, piece: Piece, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """inputs, targets, target_weights [n]: a document, or the part of it that is in this row."""
    if not self.config.boundaries:
      tokens = piece.read(piece.start, piece.stop + 1)
    else:
      tokens = piece.read(max(piece.start - 1, 0), piece.stop)
      first = [self.tokenizer.bos_id] if piece.start == 0 else []
      last = [self.tokenizer.eos_id] if piece.stop > piece.length else []
      tokens = np.concatenate([first, tokens, last]).astype(np.int32)
    weights = np.ones(len(tokens) - 1, np.float32)
    return {'inputs': tokens[:-1], 'targets': tokens[1:], 'target_weights': weights}

  def prompt(self, text: str) -> Prompt:
    """To continue a text; '' starts from nothing."""
    t = self.tokenizer
    if self.config.boundaries:
      return Prompt(np.append(t.bos_id, t.encode(text)), eos_id=t.eos_id)
    # Trained without BOS: a line end is the nearest thing to a beginning.
    inputs = t.encode(text or '\n')
    if not len(inputs):
      raise UserError(
        f'{text[:30]!r}: a text without tokens; trained with objective.boundaries=False, the model '
        'goes on from one token at least'
      )
    return Prompt(inputs)
