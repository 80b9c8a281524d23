"""What lies where: which parameter is divided how, and what that takes on one device."""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from flaxlm import sharding
from flaxlm.paths import leaf_paths
from flaxlm.types import TrainState


def total_bytes(tree: Any) -> int:
  """Of all leaves, arrays or abstract ones, each counted once."""
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def device_bytes(tree: Any) -> int:
  """Of what one device holds of leaves that have a sharding."""
  part = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return sum(map(part, jax.tree.leaves(tree)))


def report(state: TrainState, mesh: Mesh) -> Iterator[str]:
  """Lines of text about an abstract state: totals and, where it is divided, every parameter."""
  devices = mesh.devices.flat
  kind = f'{mesh.size} {devices[0].platform} device{"s" * (mesh.size > 1)}'
  axes = ', '.join(f'{name} {size}' for name, size in mesh.shape.items() if size > 1)
  rest = {'optimizer state': state.opt_state, **state.extras}
  yield f'on {kind}{f" ({axes})" if axes else ""}: ' + ', '.join(
    f'{name} {_shown(total_bytes(tree))}'
    + (f' ({_shown(device_bytes(tree))} a device)' if mesh.size > 1 else '')
    for name, tree in {'parameters': state.params, **rest}.items()
  )
  if mesh.size == 1:
    return
  leaves = leaf_paths(state.params)
  width = max(map(len, leaves))
  for path, leaf in leaves.items():
    spec = [*leaf.sharding.spec, *[None] * (leaf.ndim - len(leaf.sharding.spec))]
    cut = [sharding.axes_of(entry) for entry in spec]
    sizes = ' x '.join(
      f'{size}' + (f'/{"*".join(names)}' if names else '')
      for size, names in zip(leaf.shape, cut, strict=True)
    )
    yield f'  {path:{width}}  {_shown(device_bytes(leaf)):>10}  {sizes}'


def _shown(count: int) -> str:
  """Bytes as text: 11.3 MiB."""
  power = min(int(math.log(max(count, 1), 1024)), 4)
  return f'{count / 1024**power:.{min(power, 1)}f} {("B", "KiB", "MiB", "GiB", "TiB")[power]}'
