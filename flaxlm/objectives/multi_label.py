"""Multi-label classification: any number of the labels is true of a text, each judged by itself."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.data.packing import Stream
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.objectives.pooled import Pooled, TextConfig
from flaxlm.types import Array, Batch, Mean

# Places for true labels that a row has for each text, on average; one text may take all of them.
TRUE_LABELS = 4


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """Multi-label classification."""


class Objective(Pooled):
  """The loss is the mean binary cross-entropy over all texts and labels.

  Only true labels are in the batch, in a stream of their own: `true_labels` are label numbers,
  `true_slots` the places of their texts, `true_weights` 1.
  """

  needs = ('text', 'labels')
  label_key = ''

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    super().__init__(config, tokenizer)
    self.labels = tuple(config.task.labels)
    self.threshold = config.task.threshold
    self.num_outputs = len(self.labels)
    *_, slots = self.streams
    self.streams['true'] = Stream(
      max(self.num_outputs, self.slots * min(self.num_outputs, TRUE_LABELS)),
      ('true_labels', 'true_slots', 'true_weights'),
      offset={'true_slots': slots},
    )

  def label(self, example: Mapping[str, Any]) -> tuple[int, ...]:
    """The indices of the example's labels."""
    return tuple(sorted({self.labels.index(label) for label in example['label']}))

  def lengths(self, item: Mapping[str, Any]) -> dict[str, int]:
    return super().lengths(item) | {'true': len(self._true(item))}

  def features(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Those of the text, and true_labels, true_slots, true_weights [true ones]."""
    true = self._true(item)
    return super().features(item, rng) | {
      'true_labels': np.array(true, np.int32),
      'true_slots': np.zeros(len(true), np.int32),
      'true_weights': np.ones(len(true), np.float32),
    }

  def _true(self, item: Mapping[str, Any]) -> tuple[int, ...]:
    return item['label'] if item['labelled'] else ()

  def weights(self, batch: Batch) -> dict[str, Array]:
    return {'loss': batch['target_weights'].sum() * self.num_outputs}

  def losses(self, outputs, batch: Batch) -> tuple[dict[str, Array], dict[str, Mean]]:
    """Summed loss of each term, and the metrics.

    `accuracy` is over all texts and labels, of what is predicted from the task's threshold on.
    """
    rows = jnp.arange(outputs.shape[0])[:, None]
    targets = jnp.zeros(outputs.shape, jnp.float32)
    place = rows, batch['true_slots'], batch['true_labels']
    targets = targets.at[place].add(batch['true_weights'])
    weights = batch['target_weights'][..., None]
    # -log p = softplus(x) - x of a true label, softplus(x) of a false one.
    losses = (jax.nn.softplus(outputs) - outputs * targets) * weights
    right = ((jax.nn.sigmoid(outputs) >= self.threshold) == (targets > 0.5)) * weights
    weight = self.weights(batch)['loss']
    loss = Mean(losses.sum(), weight)
    return {'loss': loss.total}, {'loss': loss, 'accuracy': Mean(right.sum(), weight)}

  def predict(self, outputs: Array, batch: Batch) -> dict[str, Array]:
    """probabilities [B, T, C] of each label, example_ids [B, T], weights [B, T]."""
    return {
      'probabilities': jax.nn.sigmoid(outputs),
      'example_ids': batch['example_ids'],
      'weights': batch['example_weights'],
    }
