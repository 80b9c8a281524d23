"""What the shape of a parameter does not tell: its contracted axes, its distance from the head."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn

from flaxlm.paths import STACK, all_virtual_paths, leaf_paths
from flaxlm.types import DELTA

_LAYER = re.compile(r'^(trunk/(?:.*/)?)layers/(\d+)/')
# The norm behind the last layer, `final_norm` or that of either stack, goes with the head.
_TOP = re.compile(r'^(head/|trunk/\w*norm/)')


@dataclasses.dataclass(frozen=True)
class Layout:
  """inputs: path of a kernel -> how many of its axes (but that of layers) are contracted;
  distances: virtual path -> layers between the leaf and the output, see `distances`.
  """

  inputs: Mapping[str, int]
  distances: Mapping[str, int]

  def num_inputs(self, path: str) -> int:
    """Contracted axes of the kernel at a path, also of a part of a stack; 0 for other leaves."""
    nodes = ('layers' if STACK.fullmatch(node) else node for node in path.split('/'))
    return self.inputs.get('/'.join(nodes), 0)


def boxes_of(boxed: Any) -> dict[str, nn.Partitioned]:
  """Path -> box, of parameters that are boxed with their logical axes."""
  return leaf_paths(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))


def make_layout(boxed: Any) -> Layout:
  """The layout of parameters, or of their shapes, that are boxed with their logical axes."""
  inputs = {}
  for name, box in boxes_of(boxed).items():
    axes = [axis for axis in box.names if axis != 'layers']
    if name.endswith('/kernel') and len(axes) > 1:
      # Kernels read the residual stream or write to it.
      inputs[name] = 1 if axes[0] == 'embed' else len(axes) - 1
  return Layout(inputs, distances(all_virtual_paths(nn.unbox(boxed))))


def distances(names: Iterable[str]) -> dict[str, int]:
  """Virtual path -> how many layers lie between the leaf and the output, itself included.

  0 for the head and the norm before it, 1 for the last layer of a stack, N for the first of N, and
  one more than the highest stack has layers for embeddings and positions. Each stack of an
  encoder-decoder counts for itself. What LoRA adds to a leaf lies where the leaf does.
  """
  names = list(names)
  layers: dict[str, int] = {}
  for name in names:
    if found := _LAYER.match(name.removeprefix(f'{DELTA}/')):
      layers[found[1]] = max(layers.get(found[1], 0), int(found[2]) + 1)
  bottom = max(layers.values(), default=0) + 1

  def distance(name: str) -> int:
    if found := _LAYER.match(name):
      return layers[found[1]] - int(found[2])
    return 0 if _TOP.match(name) else bottom

  return {name: distance(name.removeprefix(f'{DELTA}/')) for name in names}
