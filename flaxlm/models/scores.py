"""What a vocabulary head says of tokens, in full; losses take `losses.token_scores`."""

import jax
import jax.numpy as jnp

from flaxlm.layers.attention import soft_cap
from flaxlm.types import Array, VocabOutput


def logits(output: VocabOutput) -> Array:
  """float32 [..., vocab_size] of what a vocabulary head returns."""
  table = output.table.astype(output.hidden.dtype)
  # The padding of the table is cut from the result: cutting the table would copy it.
  result = jnp.dot(output.hidden, table.T, preferred_element_type=jnp.float32)
  if output.bias is not None:
    result = result + output.bias
  return soft_cap(result[..., : output.vocab_size], output.softcap)


def log_probabilities(output: VocabOutput) -> Array:
  """Natural logarithms, float32 [..., vocab_size]."""
  return jax.nn.log_softmax(logits(output))
