"""Reading with a cache: what every way to generate text shares.

Sequences are padded on the right, and a token's slot in the cache is its position, so that what a
row yields depends neither on the padding nor on the other rows of its batch.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.config.transformer import TransformerConfig
from flaxlm.data import packing
from flaxlm.layers.attention import Cache, KeyValues
from flaxlm.models.model import Model
from flaxlm.models.stack import unstacked
from flaxlm.objectives.base import Objective, Prompt
from flaxlm.paths import path_name
from flaxlm.types import Array, VocabOutput

# Lengths are rounded up to powers of two from the first to the second of these, then to multiples
# of the second, so that few shapes are compiled.
SMALLEST, LARGEST = 32, 128
# Leaves that every use casts to the precision of the computation: they are cast once.
_CAST = ('kernel', 'token/table', 'vocab/table')


@flax.struct.dataclass
class Source:
  """What the encoder reads: ids and segment ids (0: padding), int32 [B, L] each."""

  inputs: Array
  segment_ids: Array


@flax.struct.dataclass
class Prompts:
  """What a batch begins with: ids [B, P] of `lengths` [B] and, of an encoder-decoder, the source.

  slots: of the cache, at least P; prefix, eos_id: as of a `Prompt`, the same for all rows.
  """

  inputs: Array
  lengths: Array
  source: Source | None
  slots: int = flax.struct.field(pytree_node=False)
  prefix: bool = flax.struct.field(pytree_node=False)
  eos_id: int | None = flax.struct.field(pytree_node=False)

  def sequences(self) -> Array:
    """Ids [B, slots], with room for what is written."""
    return jnp.pad(self.inputs, [(0, 0), (0, self.slots - self.inputs.shape[1])])


@dataclasses.dataclass(frozen=True)
class Reader:
  """A model and its parameters as decoding reads them: a copy, which serves any number of calls.

  longest: tokens that its decoder reads at most.
  """

  model: Model
  params: Any
  longest: int

  @classmethod
  def of(cls, model: Model, params: Any, objective: Objective | None = None) -> 'Reader':
    """Of parameters as they are trained: {'trunk', 'head'}.

    objective: of the run. Where its rows are longer than `model.max_length`, which position schemes
    without a table allow, so is what is read.
    """
    streams = objective.streams.values() if objective is not None else ()
    rows = [s.capacity for s in streams if {'inputs', 'decoder_inputs'} & {*s.keys}]
    config = model.trunk.config
    params = _ready(jnp.dtype(config.precision), params)
    return cls(model, params, max([config.max_length, *rows]))


def bucket(length: int, longest: int | None = None) -> int:
  """The number of slots that is compiled for a length; at most `longest`."""
  size = SMALLEST
  while size < min(length, LARGEST):
    size *= 2
  size = size if length <= size else -(-length // LARGEST) * LARGEST
  return size if longest is None else min(size, longest)


def padded(sequences: Sequence[np.ndarray], rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """(int32 [rows, width], lengths [rows]); rows beyond the sequences have a single token 0."""
  result, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
  for row, sequence in enumerate(sequences):
    result[row, : len(sequence)] = sequence
    lengths[row] = len(sequence)
  return result, lengths


def prepare(
  reader: Reader, prompts: Sequence[Prompt], reads: Sequence[np.ndarray], new_tokens: int
) -> Prompts:
  """Prompts of one objective as a batch, padded so that few shapes are compiled.

  reads: ids [n] that the decoder reads of each; new_tokens: how many follow at most, where they
  fit. Rows are added up to a power of two, with a single token 0 each.
  """
  rows, first = 1 << (len(reads) - 1).bit_length(), prompts[0]
  width = bucket(max(map(len, reads)), reader.longest)
  inputs, lengths = padded(reads, rows, width)
  source = None
  if first.encoder_inputs is not None:
    sources = [prompt.encoder_inputs for prompt in prompts]
    ids, sizes = padded(sources, rows, bucket(max(map(len, sources))))
    source = Source(ids, (np.arange(ids.shape[1]) < sizes[:, None]).astype(np.int32))
  slots = max(width, bucket(int(lengths.max()) + new_tokens, reader.longest))
  return Prompts(inputs, lengths, source, slots, first.prefix, first.eos_id)


def empty(config: TransformerConfig, layers: int, batch: int, slots: int) -> tuple[Cache, ...]:
  """Zeros for the keys and values of `layers` layers."""
  shape = (batch, config.kv_heads, slots, config.head_size)
  # Arrays of their own: each is updated in place.
  zeros = lambda: jnp.zeros(shape, config.precision)
  return tuple(Cache(KeyValues(zeros(), zeros())) for _ in range(layers))


def encode(model: Model, params: Any, source: Source) -> Array:
  """Encoder output [B, L, D]."""
  batch = packing.one_segment('encoder_', source.inputs, source.segment_ids)
  start = jnp.zeros((len(source.inputs), 1), jnp.int32)
  batch |= {key: start for key in ('decoder_inputs', 'decoder_positions', 'decoder_segment_ids')}
  return model.apply({'params': params}, batch)[1].encoder


def call(
  model: Model,
  params: Any,
  inputs: Array,
  positions: Array,
  cache: tuple[Cache, ...],
  source_segment_ids: Array | None = None,
  memory: Array | None = None,
  prefix: Array | None = None,
) -> tuple[VocabOutput, tuple[Cache, ...]]:
  """(output of new tokens [B, n] at `positions` [B, n], the cache with them).

  source_segment_ids: [B, L] of an encoder-decoder. memory: its encoder's output, at the first call;
  the cache then has what the layers made of it. prefix: marks [B, n] of new tokens that all of them
  see, or None.
  """
  if source_segment_ids is None:
    batch = {'inputs': inputs, 'positions': positions}
    batch |= {} if prefix is None else {'prefix': prefix}
    outputs, output = model.apply({'params': params}, batch, cache=cache)
    return outputs, output.cache
  batch = {
    'decoder_inputs': inputs,
    'decoder_positions': positions,
    'decoder_segment_ids': jnp.ones_like(inputs),
    'encoder_segment_ids': source_segment_ids,
  }
  outputs, output = model.apply({'params': params}, batch, cache=cache, memory=memory)
  return outputs, output.cache


def prefill(model: Model, params: Any, prompts: Prompts) -> tuple[VocabOutput, tuple[Cache, ...]]:
  """Reads prompts: (output at the last token of each, [B, D]; the cache)."""
  config, source = model.trunk.config, prompts.source
  rows, width = prompts.inputs.shape
  positions = jnp.broadcast_to(jnp.arange(width), (rows, width))
  marks = (positions < prompts.lengths[:, None]).astype(jnp.int32) if prompts.prefix else None
  memory, segments, layers = None, None, config.num_layers
  if source is not None:
    memory, segments = encode(model, params, source), source.segment_ids
    layers = config.decoder_layers
  cache = empty(config, layers, rows, prompts.slots)
  output, cache = call(model, params, prompts.inputs, positions, cache, segments, memory, marks)
  return output.replace(hidden=output.hidden[jnp.arange(rows), prompts.lengths - 1]), cache


@functools.partial(jax.jit, static_argnums=0)
def _ready(dtype: Any, params: Any) -> Any:
  """Each layer by itself, and matrices in the precision of the computation."""

  def cast(path, leaf):
    return leaf.astype(dtype) if path_name(path).endswith(_CAST) else leaf

  return unstacked(jax.tree_util.tree_map_with_path(cast, params))
