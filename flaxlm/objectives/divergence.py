"""How far apart two predictions of one target are: (KL(p || q) + KL(q || p)) / 2, for R-Drop."""

import jax
import jax.numpy as jnp

from flaxlm.models.scores import logits
from flaxlm.objectives.losses import in_chunks
from flaxlm.types import Array, VocabOutput


def over_classes(first: Array, second: Array, weights: Array) -> Array:
  """Summed over targets: float32 logits [..., C] of both passes, weights [...]."""
  log_p, log_q = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
  apart = 0.5 * ((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q)).sum(-1)
  return (apart * weights).sum()


def over_vocabulary(first: VocabOutput, second: VocabOutput, weights: Array) -> Array:
  """Summed over targets, weights [B, T]; the logits of a chunk of targets are made at a time."""

  @jax.checkpoint
  def chunk(a: Array, b: Array, w: Array) -> Array:
    p, q = logits(first.replace(hidden=a)), logits(second.replace(hidden=b))
    return over_classes(p, q, w)

  xs = in_chunks((first.hidden, second.hidden, weights), first.table.shape[0])
  total, _ = jax.lax.scan(lambda total, x: (total + chunk(*x), None), jnp.zeros(()), xs)
  return total
