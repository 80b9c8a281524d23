"""The layers of one stack: parameters stacked over layers, run unrolled or as one compiled loop."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers import remat
from flaxlm.models.block import Block, Context
from flaxlm.sharding import keep_rows

# What a layer without a norm before its attention lacks.
BARE = 'attention_norm'
# Where `unstacked` puts the parameters of each layer.
EACH = 'each_layer'
# (x, (parameters, index, cache) of a layer) -> (x, the layer's new cache)
Layer = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


class Stack(nn.Module):
  """`num_layers` blocks. The leaf `layers` holds each parameter with a leading axis of layers.

  Leaves that layer 0 lacks stand beside it in `layers_from_1`, with one slot less. Local and global
  layers alternate as the config says, which is known when the program is compiled: no layer
  computes a mask that it does not need.

  Layer i initialises from fold_in(key, i) and draws dropout from fold_in(key, i), so that neither
  depends on how the layers are run, and how they run never changes a checkpoint.
  """

  config: TransformerConfig
  num_layers: int
  block: type[Block] = Block

  @nn.compact
  def __call__(
    self, x: jax.Array, context: Context, deterministic: bool, cache: Any = None
  ) -> tuple[jax.Array, Any]:
    """x: [B, L, D]; cache: of each block, with a leading axis of layers or as a tuple; or None.

    Returns (x, the new cache).
    """
    c = self.config
    if isinstance(cache, tuple) or self.has_variable('params', EACH):
      return self._one_by_one(x, context, cache)
    layers, later = self._parameters(x, context)
    key = None if deterministic else self.make_rng('dropout')

    def layer(i: int, scanned: bool) -> Layer:
      """How layer i, and any other with its place in the pattern, is run."""
      block = self.block(c, c.is_local(i), c.bare_first_layer and i == 0, parent=None)

      def apply(x, layer):
        params, index, cache = layer
        x = remat.named(keep_rows(x), remat.INPUT)
        rngs = {} if key is None else {'dropout': jax.random.fold_in(key, index)}
        depth = (index + 1) / self.num_layers
        return block.apply({'params': params}, x, context, depth, deterministic, cache, rngs=rngs)

      if c.remat == 'none':
        return apply
      return jax.checkpoint(apply, policy=remat.POLICIES[c.remat], prevent_cse=not scanned)

    stacked = layers, jnp.arange(self.num_layers), cache
    outputs = []
    start = int(c.bare_first_layer)
    if start:
      first, stacked = _split(stacked, 1)
      x, output = _unrolled([layer(0, False)], x, first)
      outputs.append(output)
    if start and later:
      stacked = ({**stacked[0], **later}, *stacked[1:])
    places = range(start, start + c.pattern)
    periods = (self.num_layers - start) // c.pattern if c.scan_layers else 0
    if periods:
      scanned, stacked = _split(stacked, periods * c.pattern)
      x, output = _scanned([layer(i, True) for i in places], x, scanned)
      outputs.append(output)
    if start + periods * c.pattern < self.num_layers:
      x, output = _unrolled([layer(i, False) for i in places], x, stacked)
      outputs.append(output)
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)

  def _one_by_one(
    self, x: jax.Array, context: Context, cache: tuple[Any, ...] | None
  ) -> tuple[jax.Array, tuple[Any, ...] | None]:
    """Decoding: unrolled, each layer with a cache of its own, which XLA can update in place."""
    c = self.config
    params = self.variables['params']
    layers = params[EACH] if EACH in params else _separate(params)
    kept = []
    for i, (layer, old) in enumerate(zip(layers, cache or [None] * len(layers), strict=True)):
      block = self.block(c, c.is_local(i), c.bare_first_layer and i == 0, parent=None)
      x, new = block.apply({'params': layer}, x, context, jnp.ones(()), True, old)
      kept.append(new)
    return x, cache and tuple(kept)

  def _parameters(self, x: jax.Array, context: Context) -> tuple[Any, Any]:
    """Leaves of all layers, and those that all but layer 0 have."""
    bare = self.config.bare_first_layer
    later = bare and self.num_layers > 1
    if not self.is_initializing():
      return self.get_variable('params', 'layers'), (
        self.get_variable('params', 'layers_from_1') if later else {}
      )
    block = self.block(self.config, parent=None)

    def init(key, layers):
      keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(layers)
      stacked = jax.vmap(
        lambda k: block.init(k, x, context, jnp.ones(()), True, None)['params']
      )(keys)  # fmt: skip
      add_axis = lambda leaf: leaf.add_axis(0, {nn.PARTITION_NAME: 'layers'})
      return jax.tree.map(add_axis, stacked, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))

    def common(key):
      found = init(key, jnp.arange(self.num_layers))
      return {name: leaf for name, leaf in found.items() if not bare or name != BARE}

    rest = lambda key: {BARE: init(key, jnp.arange(1, self.num_layers))[BARE]}
    return self.param('layers', common), self.param('layers_from_1', rest) if later else {}


def _split(stacked: Any, at: int) -> tuple[Any, Any]:
  """The first `at` layers and the others. Splitting (not slicing) spares the gradient an addition.

  A part that would be empty is not made.
  """
  leaves, treedef = jax.tree.flatten(stacked)
  if at == leaves[0].shape[0]:
    return stacked, None
  pairs = [jnp.split(leaf, [at]) for leaf in leaves]
  return tuple(jax.tree.unflatten(treedef, part) for part in zip(*pairs, strict=True))


def _scanned(period: Sequence[Layer], x: jax.Array, stacked: Any) -> tuple[jax.Array, Any]:
  """Whole periods as one compiled loop: layer i is run by period[i % len(period)]."""
  size = len(period)
  group = lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:])
  x, outputs = jax.lax.scan(
    lambda x, layers: _unrolled(period, x, layers), x, jax.tree.map(group, stacked)
  )
  return x, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), outputs)


def _unrolled(period: Sequence[Layer], x: jax.Array, stacked: Any) -> tuple[jax.Array, Any]:
  """As `_scanned`, in a Python loop, of any number of layers."""
  outputs = []
  for i, layer in enumerate(_each(stacked)):
    x, output = period[i % len(period)](x, layer)
    outputs.append(output)
  return x, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)


def _each(stacked: Any) -> list[Any]:
  """The layers of a stack. Splitting (not indexing) makes the gradient one concatenation."""
  leaves, treedef = jax.tree.flatten(stacked)
  columns = [[part[0] for part in jnp.split(leaf, leaf.shape[0])] for leaf in leaves]
  return [jax.tree.unflatten(treedef, layer) for layer in zip(*columns, strict=True)]


def _separate(params: Mapping[str, Any]) -> list[Any]:
  """Parameters of each layer, from those of a stack."""
  layers = _each(params['layers'])
  if 'layers_from_1' not in params:
    return layers
  return [layers[0], *map(dict.__or__, layers[1:], _each(params['layers_from_1']))]


def unstacked(params: Any) -> Any:
  """Parameters of a model with those of each layer as arrays of their own, which Stack also takes.

  A loop over tokens would otherwise copy every layer out of its stack at every turn.
  """
  if not isinstance(params, Mapping):
    return params
  if 'layers' in params:
    return {EACH: _separate(params)}
  return {name: unstacked(value) for name, value in params.items()}
