"""Classification of a text or a pair of texts, by a trunk of any family: one label of several."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from flaxlm.config.field import field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.objectives import divergence, losses
from flaxlm.objectives.pooled import Pooled, TextConfig
from flaxlm.types import Array, Batch, Mean


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """Classification. The loss of evaluations is without smoothing."""

  label_smoothing: float = field(
    0.0, 'probability taken from the label and spread over all', low=0.0, below=1.0
  )


class Objective(Pooled):
  """The loss is the mean over all texts."""

  needs = ('text', 'label')

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    super().__init__(config, tokenizer)
    self.smoothing = config.objective.label_smoothing
    self.labels = tuple(config.task.labels)
    self.num_outputs = len(self.labels)

  def label(self, example: Mapping[str, Any]) -> int:
    """The index of the example's label."""
    return self.labels.index(example['label'])

  def losses(self, outputs, batch: Batch) -> tuple[dict[str, Array], dict[str, Mean]]:
    """Summed loss of each term, and the metrics."""
    targets, weights = batch['targets'], batch['target_weights']
    loss, accuracy = losses.class_metrics(outputs, targets, weights)
    total = loss.total
    if self.smoothing:
      total = losses.smoothed_class_loss(outputs, targets, weights, self.smoothing)
    return {'loss': total}, {'loss': loss, 'accuracy': accuracy}

  def divergence(self, first: Array, second: Array, batch: Batch) -> dict[str, Array]:
    """Of two passes over a batch, summed over texts, for each loss term."""
    return {'loss': divergence.over_classes(first, second, batch['target_weights'])}

  def predict(self, outputs: Array, batch: Batch) -> dict[str, Array]:
    """probabilities [B, T, C], example_ids [B, T], weights [B, T] (0: an empty slot)."""
    return {
      'probabilities': jax.nn.softmax(outputs),
      'example_ids': batch['example_ids'],
      'weights': batch['example_weights'],
    }
