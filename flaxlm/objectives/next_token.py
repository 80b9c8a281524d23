"""What objectives share that predict every token of a sequence from those before it."""

import flax.linen as nn

from flaxlm.config.transformer import TransformerConfig
from flaxlm.models.heads import VocabHead
from flaxlm.objectives import losses
from flaxlm.types import Array, Batch, Mean


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


class Head(nn.Module):
  """Next-token distribution at every position."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, output, batch, deterministic):
    return VocabHead(self.config, name='vocab')(output.hidden, output.embedding)
