"""What the backward pass keeps of a layer's forward pass; the rest it computes again.

Policies by name, from the most memory and least work to the least memory and most work:

  none                everything is kept
  dots_and_attention  the results of all projections, and of attention
  dots                the results of all projections; attention runs again
  attention           queries, keys, values, and the results of attention and its projection
  context             the results of attention and its projection
  full                the layer's input
  offload             the layer's input, in the memory of the host
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

# Values that policies know by name.
INPUT, QUERY, KEY, VALUE = 'layer_input', 'query', 'key', 'value'
CONTEXT, OUT = 'attention_context', 'attention_out'

_kept = jax.checkpoint_policies
POLICIES: dict[str, Callable[..., Any]] = {
  'dots_and_attention': _kept.save_from_both_policies(
    _kept.dots_with_no_batch_dims_saveable, _kept.save_only_these_names(CONTEXT)
  ),
  'dots': _kept.dots_with_no_batch_dims_saveable,
  'attention': _kept.save_only_these_names(QUERY, KEY, VALUE, CONTEXT, OUT),
  'context': _kept.save_only_these_names(CONTEXT, OUT),
  'full': _kept.nothing_saveable,
  'offload': _kept.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[INPUT],
    offload_src='device',
    offload_dst='pinned_host',
  ),
}


def named(x: jax.Array, name: str) -> jax.Array:
  """x, under a name by which policies keep it."""
  return checkpoint_name(x, name)
