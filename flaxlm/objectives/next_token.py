"""What objectives share that predict every token of a sequence from those before it."""

import dataclasses

import flax.linen as nn
import numpy as np

from flaxlm.config.transformer import TransformerConfig
from flaxlm.models.heads import VocabHead
from flaxlm.objectives import divergence, losses
from flaxlm.types import Array, Batch, Mean


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What decoding begins with to go on from a text, or to answer it.

  inputs: ids [n >= 1] that the decoder reads first; encoder_inputs: ids [m >= 1] of an
  encoder-decoder; eos_id: the token that ends a text, None if there is none; prefix: whether the
  tokens of `inputs` see each other in both directions.
  """

  inputs: np.ndarray
  encoder_inputs: np.ndarray | None = None
  eos_id: int | None = None
  prefix: bool = False


class NextToken:
  """The loss is the mean over all targets, each predicted at its own place.

  Subclasses set `config`, a VocabLossConfig, and make targets and target_weights [B, T].
  """

  config: losses.VocabLossConfig
  terms = ('loss',)
  perplexity = 'loss'

  def head(self, model: TransformerConfig) -> nn.Module:
    return Head(model)

  def weights(self, batch: Batch) -> dict[str, Array]:
    """The denominator of each loss term."""
    return {'loss': batch['target_weights'].sum()}

  def losses(self, outputs, batch: Batch) -> tuple[dict[str, Array], dict[str, Mean]]:
    """Summed loss of each term, and the metrics."""
    targets, weights = batch['targets'], batch['target_weights']
    total, loss, accuracy = losses.token_metrics(self.config, outputs, targets, weights)
    return {'loss': total}, {'loss': loss, 'accuracy': accuracy}

  def divergence(self, first, second, batch: Batch) -> dict[str, Array]:
    """Of two passes over a batch, summed over targets, for each loss term."""
    return {'loss': divergence.over_vocabulary(first, second, batch['target_weights'])}


class Head(nn.Module):
  """Next-token distribution at every position."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, output, batch, deterministic):
    return VocabHead(self.config, name='vocab')(output.hidden, output.embedding)
