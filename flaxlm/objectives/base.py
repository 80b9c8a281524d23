"""The contract of an objective, from which the class `Objective` of each file here derives.

Everything an objective may say of itself stands here with its default, and nothing else of it is
asked for.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import numpy as np

from flaxlm.config.transformer import TransformerConfig
from flaxlm.data.packing import Stream
from flaxlm.types import Array, Batch, Mean

# Unpadded arrays by batch key, of one segment of a row.
Features = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What decoding begins with to go on from a text, or to answer it.

  inputs: ids [n >= 1] that the decoder reads first; encoder_inputs: ids [m >= 1] of an
  encoder-decoder; eos_id: the token that ends a text, None if there is none; prefix: whether the
  tokens of `inputs` see each other in both directions.
  """

  inputs: np.ndarray
  encoder_inputs: np.ndarray | None = None
  eos_id: int | None = None
  prefix: bool = False


def rounded(number: float, rng: np.random.Generator) -> int:
  """The number rounded up or down at random, so that its mean is exact."""
  return int(number + rng.random())


class Objective(abc.ABC):
  """What a model learns: how rows become batches, and outputs losses. Made of (config, tokenizer).

  A subclass sets, as attributes of the class or in `__init__`:

  families: of the trunks that it can train.
  packing: 'concatenate' for running text, of which pieces fill the rows, or 'first_fit' for the
    items of labelled rows, several of which may lie in one row.
  streams: name -> Stream, how each group of batch keys is packed.
  span, gap: with 'concatenate', how a row is filled from the text (`packing.span_and_gap`).
  needs: with 'first_fit', what of an example it learns from, of what a task `gives`.

  and, where the default does not hold:

  terms: loss terms; the loss is the sum of their means.
  perplexity: the term of which evaluation reports exp; '' for none.
  likelihood: whether the summed loss is -log p of the text, so that bits per byte follow.
  longest: tokens of the longest segment, where that is less than a row.
  recurrent: whether a trunk's memory goes from each row to the one that continues it.
  augmented: with 'first_fit', keys of an item whose words may change while the label stays.
  predicts_masks: whether tokens are masked, and predicted in their places.
  sentinels: whether targets hold sentinels, which name the gaps of the source.
  prompt_marks: how many tokens at the beginning of a decoder's prompt are no text, and never cut.
  """

  families: tuple[str, ...]
  packing: Literal['concatenate', 'first_fit']
  streams: dict[str, Stream]
  span: int
  gap: int
  needs: tuple[str, ...] = ()
  terms: tuple[str, ...] = ('loss',)
  perplexity: str = ''
  likelihood: bool = False
  longest: int | None = None
  recurrent: bool = False
  augmented: tuple[str, ...] = ()
  predicts_masks: bool = False
  sentinels: bool = False
  prompt_marks: int = 0

  # What not every objective can do: None, or a method. With 'first_fit' the first two are there.
  # examples -> tokenised items, into several of which an example may be cut.
  items: Callable[[Sequence[Mapping[str, Any]]], list[Any]] | None = None
  # item -> stream -> places that it takes there.
  lengths: Callable[[Any], Mapping[str, int]] | None = None
  # text -> what decoding begins with to continue or to answer it ('' to begin a text).
  prompt: Callable[[str], Prompt] | None = None
  # (examples, new tokens of each) -> what decoding begins with to write their targets.
  prompts: Callable[[Sequence[Mapping[str, Any]], int], list[Prompt]] | None = None
  # random generator -> what has the `features` of the items of one row, drawn for each row.
  of_row: Callable[[np.random.Generator], Any] | None = None
  # (outputs of one pass, of another, batch) -> term -> summed divergence of the two (R-Drop).
  divergence: Callable[[Any, Any, Batch], dict[str, Array]] | None = None

  @abc.abstractmethod
  def features(self, item: Any, rng: np.random.Generator) -> Features | list[Features] | None:
    """The arrays of a piece of text or an item, one for each batch key that is not packing's own.

    Args:
      item: a `Piece` or one of `items`.
      rng: the only source of randomness.

    Returns:
      Those of one segment, or of several; None to leave the item out.
    """

  @abc.abstractmethod
  def head(self, model: TransformerConfig) -> nn.Module:
    """A module that is called with (ModelOutput, batch, deterministic) and returns outputs."""

  def weights(self, batch: Batch) -> dict[str, Array]:
    """Term -> the denominator of its mean, from the batch alone."""
    return {'loss': batch['target_weights'].sum()}

  @abc.abstractmethod
  def losses(self, outputs: Any, batch: Batch) -> tuple[dict[str, Array], dict[str, Mean]]:
    """(term -> summed loss, metric -> Mean), as sums over what the batch holds."""

  def predict(self, outputs: Any, batch: Batch) -> dict[str, Array]:
    """What the metrics of a task get: [B, T, ...], with `example_ids` and `weights` [B, T]."""
    del outputs, batch
    return {}
