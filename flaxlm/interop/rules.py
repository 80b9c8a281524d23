"""What a family's table is made of: which tensor is which parameter, and how one becomes the other.

A tensor's name may hold {layer}: one tensor a layer, and the parameters are stacked over layers.
Every transformation is a bijection whose shapes follow from those of the parameters, so that one
declaration serves import, export and the check of shapes.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from flaxlm.config.transformer import TransformerConfig

Shape = tuple[int, ...]


class Plain:
  """The tensor is the parameter, but for its shape: a parameter of any axes is flat in a file."""

  def shape(self, leaves: Sequence[Shape]) -> Shape:
    """Shape of the tensor, from those of the parameters (of one layer)."""
    return (math.prod(leaves[0]),)

  def load(self, tensor: np.ndarray, leaves: Sequence[Shape]) -> list[np.ndarray]:
    """The parameters in a tensor; `leaves` are their shapes."""
    return [tensor.reshape(leaves[0])]

  def save(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
    """The tensor of the parameters."""
    return leaves[0].reshape(self.shape([leaf.shape for leaf in leaves]))


@dataclasses.dataclass(frozen=True)
class Kernel(Plain):
  """A matrix: the first `inputs` axes of the parameter are contracted; torch has them last."""

  inputs: int = 1
  transposed: bool = True

  def shape(self, leaves: Sequence[Shape]) -> Shape:
    sizes = math.prod(leaves[0][: self.inputs]), math.prod(leaves[0][self.inputs :])
    return sizes[::-1] if self.transposed else sizes

  def load(self, tensor: np.ndarray, leaves: Sequence[Shape]) -> list[np.ndarray]:
    return [(tensor.T if self.transposed else tensor).reshape(leaves[0])]

  def save(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
    shape = self.shape([leaves[0].shape])
    if self.transposed:
      return leaves[0].reshape(shape[::-1]).T
    return leaves[0].reshape(shape)


@dataclasses.dataclass(frozen=True)
class Fused(Plain):
  """Several parameters side by side along `axis` of one tensor, each by the rule `part`."""

  part: Plain
  axis: int

  def shape(self, leaves: Sequence[Shape]) -> Shape:
    shapes = [list(self.part.shape([leaf])) for leaf in leaves]
    shapes[0][self.axis] = sum(shape[self.axis] for shape in shapes)
    return tuple(shapes[0])

  def load(self, tensor: np.ndarray, leaves: Sequence[Shape]) -> list[np.ndarray]:
    ends = np.cumsum([self.part.shape([leaf])[self.axis] for leaf in leaves])
    parts = np.split(tensor, ends[:-1], self.axis)
    return [self.part.load(p, [leaf])[0] for p, leaf in zip(parts, leaves, strict=True)]

  def save(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([self.part.save([leaf]) for leaf in leaves], self.axis)


class Table(Plain):
  """A table [rows, ...], as it is."""

  def shape(self, leaves: Sequence[Shape]) -> Shape:
    return leaves[0]


class LastFirst(Plain):
  """A kernel whose last axis, that of its outputs, comes first in the tensor."""

  def shape(self, leaves: Sequence[Shape]) -> Shape:
    return (leaves[0][-1], *leaves[0][:-1])

  def load(self, tensor: np.ndarray, leaves: Sequence[Shape]) -> list[np.ndarray]:
    return [np.moveaxis(tensor, 0, -1)]

  def save(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
    return np.moveaxis(leaves[0], -1, 0)


class Boxed(Plain):
  """A vector of a tensor [1, 1, n]."""

  def shape(self, leaves: Sequence[Shape]) -> Shape:
    return (1, 1, *leaves[0])


@dataclasses.dataclass(frozen=True)
class Vocabulary(Plain):
  """A table or bias with a row for each token, padded with rows of zeros in the parameter."""

  size: int

  def shape(self, leaves: Sequence[Shape]) -> Shape:
    return (self.size, *leaves[0][1:])

  def load(self, tensor: np.ndarray, leaves: Sequence[Shape]) -> list[np.ndarray]:
    padding = [(0, leaves[0][0] - self.size)] + [(0, 0)] * (tensor.ndim - 1)
    return [np.pad(tensor, padding)]

  def save(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
    return leaves[0][: self.size]


@dataclasses.dataclass(frozen=True)
class Rule:
  """A tensor and its parameters.

  copies: other names under which files hold the same tensor, because it is tied or for reasons of
    history; any of them serves, and all that are there must agree.
  first: number of the first layer that has the tensor.
  optional: it may be absent, and its parameters then are too.
  write_copies: whether an export writes them, too: where transformers does not tie them itself.
  """

  tensor: str
  paths: tuple[str, ...]
  transform: Plain = Plain()
  copies: tuple[str, ...] = ()
  first: int = 0
  optional: bool = False
  write_copies: bool = False


@dataclasses.dataclass(frozen=True)
class Buffer:
  """A tensor that no parameter holds, because `values(shape)` gives it; it is rebuilt on export."""

  tensor: str
  values: Callable[[Shape], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Kept:
  """A tensor that the model does not use; it is put aside on import and written back on export."""

  tensor: str


Entry = Rule | Buffer | Kept


def dense(
  tensor: str, path: str, inputs: int = 1, bias: bool = True, transposed: bool = True
) -> list[Rule]:
  """A torch Linear: `weight` [out, in], or [in, out] if not `transposed`, and `bias` [out]."""
  rules = [Rule(f'{tensor}.weight', (f'{path}/kernel',), Kernel(inputs, transposed))]
  return rules + [Rule(f'{tensor}.bias', (f'{path}/bias',))] * bias


def norm(tensor: str, path: str, bias: bool = True, first: int = 0) -> list[Rule]:
  """A LayerNorm, or without bias an RMSNorm."""
  rules = [Rule(f'{tensor}.weight', (f'{path}/scale',), first=first)]
  return rules + [Rule(f'{tensor}.bias', (f'{path}/bias',), first=first)] * bias


def shared_vocabulary(
  model: TransformerConfig, prefix: str, write_copies: bool = False
) -> list[Rule]:
  """Entries of the one table that both stacks of an encoder-decoder read, and of the output's.

  write_copies: as of `Rule`, of the table's names in the two stacks.
  """
  vocabulary = Vocabulary(model.vocab_size)
  copies = tuple(f'{prefix}{stack}.embed_tokens.weight' for stack in ('encoder', 'decoder'))
  if model.tie_embeddings:
    copies += ('lm_head.weight',)
  return [
    Rule(
      f'{prefix}shared.weight',
      ('trunk/token/table',),
      vocabulary,
      copies=copies,
      write_copies=write_copies,
    ),
    Rule('lm_head.weight', ('head/vocab/table',), vocabulary),
  ]


def positions(shape: Shape) -> np.ndarray:
  """[..., n]: 0 to n - 1, as in the buffer `position_ids`."""
  return np.broadcast_to(np.arange(shape[-1]), shape)


def causal(shape: Shape) -> np.ndarray:
  """[..., L, L]: 1 where a query may attend to a key."""
  return np.broadcast_to(np.tri(*shape[-2:]), shape)


def zeros(shape: Shape) -> np.ndarray:
  """[...]: 0."""
  return np.zeros(shape)


def masked_score(shape: Shape) -> np.ndarray:
  """[...]: the score of a masked pair in GPT-2's released code."""
  return np.full(shape, -1e4)
