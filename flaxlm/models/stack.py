"""The layers of one stack: parameters stacked over layers, run unrolled or as one compiled loop."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers.attention import Cache
from flaxlm.models.block import Block, Context

POLICIES = {
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Stack(nn.Module):
  """`num_layers` blocks. The leaf `layers` holds each parameter with a leading axis of layers.

  Layer i initialises from fold_in(key, i) and draws dropout from fold_in(key, i), so that neither
  depends on how the layers are run, and how they run never changes a checkpoint.
  """

  config: TransformerConfig
  num_layers: int

  @nn.compact
  def __call__(
    self, x: jax.Array, context: Context, deterministic: bool, cache: Cache | None = None
  ) -> tuple[jax.Array, Cache | None]:
    """x: [B, L, D]; cache: keys and values with a leading axis of layers, or None."""
    block = Block(self.config, parent=None)
    layers = self._parameters(block, x, context)
    key = None if deterministic else self.make_rng('dropout')

    def apply(x, layer):
      params, index, cache = layer
      rngs = {} if key is None else {'dropout': jax.random.fold_in(key, index)}
      depth = (index + 1) / self.num_layers
      return block.apply({'params': params}, x, context, depth, deterministic, cache, rngs=rngs)

    if self.config.remat != 'none':
      apply = jax.checkpoint(
        apply, policy=POLICIES[self.config.remat], prevent_cse=not self.config.scan_layers
      )
    run = jax.lax.scan if self.config.scan_layers else _unrolled
    return run(apply, x, (layers, jnp.arange(self.num_layers), cache))

  def _parameters(self, block: Block, x: jax.Array, context: Context) -> Any:
    if not self.is_initializing():
      return self.get_variable('params', 'layers')

    def init(key):
      keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(self.num_layers))
      stacked = jax.vmap(
        lambda k: block.init(k, x, context, jnp.ones(()), True, None)['params']
      )(keys)  # fmt: skip
      add_axis = lambda leaf: leaf.add_axis(0, {nn.PARTITION_NAME: 'layers'})
      return jax.tree.map(add_axis, stacked, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))

    return self.param('layers', init)


def _unrolled(apply: Callable, x: jax.Array, stacked: Any) -> tuple[jax.Array, Any]:
  """lax.scan as a Python loop. Splitting (not indexing) makes the gradient one concatenation."""
  leaves, treedef = jax.tree.flatten(stacked)
  columns = [[part[0] for part in jnp.split(leaf, leaf.shape[0])] for leaf in leaves]
  outputs = []
  for layer in zip(*columns, strict=True):
    x, output = apply(x, jax.tree.unflatten(treedef, layer))
    outputs.append(output)
  return x, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)
