"""Permutation language modelling (XLNet, Yang et al. 2019, section 2.2 and 2.3).

Of the tokens of a text, one in `predict_one_in` is to be predicted, in spans. They are the last of
an order of factorisation that is drawn anew each epoch: each is predicted from all that is not
predicted, and from those targets that come before it in the order. As in the released code, the
tokens that are not predicted see each other all.

What stands round a piece of text (`marks.py`) is never predicted.
"""

import dataclasses

import flax.linen as nn
import numpy as np

from flaxlm.config.field import field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.config.transformer import TransformerConfig
from flaxlm.data.packing import Piece, Stream, span_and_gap
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError
from flaxlm.models.family import has_two_streams
from flaxlm.models.heads import VocabHead
from flaxlm.objectives import losses
from flaxlm.objectives.base import rounded
from flaxlm.objectives.marks import Marks
from flaxlm.objectives.next_token import NextToken


@dataclasses.dataclass(frozen=True)
class Config(losses.VocabLossConfig):
  """Permutation language modelling."""

  predict_one_in: float = field(6.0, 'one in so many tokens is predicted: K of the paper', low=1.0)
  longest_span: int = field(
    5, 'targets come in spans of 1 to so many tokens, equally likely; 1: each by itself', low=1
  )


class Objective(NextToken):
  """The loss is the mean over all targets."""

  families = ('encoder',)
  packing = 'concatenate'
  likelihood = False

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    self.config = config.objective
    if not has_two_streams(config.model.name):
      raise UserError(
        f'config.objective.name: permutation_lm needs a trunk of two streams, such as xlnet, and '
        f'config.model.name is {config.model.name!r}'
      )
    self.recurrent = getattr(config.model, 'memory_length', 0) > 0
    if self.recurrent and config.data.sampling != 'streams':
      raise UserError(
        f"config.data.sampling: a memory needs 'streams', in which rows go on where those of the "
        f'step before ended, not {config.data.sampling!r}; or set config.model.memory_length=0'
      )
    self.marks = Marks(config, tokenizer)
    marks = self.marks.count(pair=False)
    rate, length = 1 / self.config.predict_one_in, config.max_length
    keys = (*self.marks.keys, 'order') + ('continues',) * self.recurrent
    self.streams = {
      'inputs': Stream(length, keys, per_token=1, per_item=marks, prefix=''),
      'targets': Stream(
        int(np.ceil(rate * (length - marks))) + 1,
        ('targets', 'target_positions', 'target_weights'),
        per_token=rate,
        per_item=1,
        offset={'target_positions': 'inputs'},
      ),
    }
    self.span, self.gap = span_and_gap(self.streams)

  def features(self, piece: Piece, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    """inputs and order [n] (and token_type_ids, continues); targets and their keys [t]."""
    tokens = piece.read(piece.start, piece.stop)
    if not len(tokens):
      return None
    targets = self.draw_targets(len(tokens), rng)
    features = dict(self.marks.features(tokens))
    places = (targets + self.marks.first_start()).astype(np.int32)
    order = np.zeros(len(features['inputs']), np.int32)
    order[places] = 1 + rng.permutation(len(targets))
    features |= {
      'order': order,
      'targets': tokens[targets],
      'target_positions': places,
      'target_weights': np.ones(len(targets), np.float32),
    }
    if self.recurrent:
      features['continues'] = np.full(len(order), piece.start > 0, np.int32)
    return features

  def draw_targets(self, n: int, rng: np.random.Generator) -> np.ndarray:
    """Positions [t], sorted, of n tokens; t is n / predict_one_in, rounded at random.

    All ways to put the spans between the tokens that stay are equally likely; two may touch. One is
    cut, so that t has its mean.
    """
    count = rounded(n / self.config.predict_one_in, rng)
    lengths = rng.integers(1, self.config.longest_span + 1, count)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), count)) + 1]
    if count:
      lengths[-1] -= lengths.sum() - count
    spans = len(lengths)
    # Of the tokens that stay and the spans, in a row, which are spans: any choice is as likely.
    stay = np.sort(rng.permutation(n - count + spans)[:spans]) - np.arange(spans)
    return np.arange(count) + np.repeat(stay, rng.permutation(lengths))

  def head(self, model: TransformerConfig) -> nn.Module:
    return Head(model)


class Head(nn.Module):
  """Distribution at each target, which is where the query stream stands."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, output, batch, deterministic):
    return VocabHead(self.config, bias=True, name='vocab')(output.hidden, output.embedding)
