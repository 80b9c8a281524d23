"""Regression: a number for a text or a pair of texts, by a trunk of any family (GLUE's STS-B)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from flaxlm.objectives.pooled import Pooled, TextConfig
from flaxlm.types import Array, Batch, Mean


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """Regression."""


class Objective(Pooled):
  """The loss is the mean squared error over all texts, in squared units of the label."""

  needs = ('text', 'number')
  label_key = 'target_values'

  def label(self, example: Mapping[str, Any]) -> float:
    """The number that is learned."""
    return example['label']

  def losses(self, outputs, batch: Batch) -> tuple[dict[str, Array], dict[str, Mean]]:
    """Summed loss of each term, and the metrics."""
    weights = batch['target_weights']
    squares = jnp.square(outputs[..., 0] - batch['target_values']) * weights
    loss = Mean(squares.sum(), weights.sum())
    return {'loss': loss.total}, {'loss': loss}

  def predict(self, outputs: Array, batch: Batch) -> dict[str, Array]:
    """values [B, T], example_ids [B, T], weights [B, T] (0: an empty slot)."""
    return {
      'values': outputs[..., 0],
      'example_ids': batch['example_ids'],
      'weights': batch['example_weights'],
    }
