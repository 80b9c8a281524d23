"""What objectives share that predict every token of a sequence from those before it."""

import flax.linen as nn

from flaxlm.config.transformer import TransformerConfig
from flaxlm.models.heads import VocabHead
from flaxlm.objectives import divergence, losses
from flaxlm.objectives.base import Objective
from flaxlm.types import Array, Batch, Mean


class NextToken(Objective):
  """The loss is the mean over all targets, each predicted at its own place.

  Subclasses set `config`, a VocabLossConfig, and make targets and target_weights [B, T].
  """

  config: losses.VocabLossConfig
  perplexity = 'loss'

  def head(self, model: TransformerConfig) -> nn.Module:
    return Head(model)

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
