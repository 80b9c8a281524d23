"""Rows of fixed shape from items of any length. Only this file pads.

Two ways to choose what shares a row: `Concatenated` cuts the corpus, laid end to end, into
equal spans (pretraining; rows are full), and `FirstFit` puts whole items side by side (labelled
rows). Both are random access, so that a batch is a function of its step.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from flaxlm.errors import UserError
from flaxlm.types import Array

OPEN_ROWS = 64  # Rows into which the next item may still go.


@dataclasses.dataclass(frozen=True)
class Stream:
  """An axis of a row along which the features of packed items lie side by side.

  An item with n document tokens takes at most `per_token * n + per_item` places of the `capacity`.
  `prefix` ('', 'encoder_', 'decoder_') marks a stream of tokens, to which packing adds
  `{prefix}segment_ids` (1, 2, ...; 0 is padding) and `{prefix}positions` (restarting in each item).
  `offset` maps a key, whose values count from the start of the item in another stream, to the
  name of that stream: packing adds where the item starts in it.
  """

  capacity: int
  keys: tuple[str, ...]
  per_token: float = 0.0
  per_item: float = 0.0
  prefix: str | None = None
  offset: Mapping[str, str] = dataclasses.field(default_factory=dict)


def span_and_gap(streams: Mapping[str, Stream]) -> tuple[int, int]:
  """Returns (span, gap) for `Concatenated`: so many document tokens always fit in every stream.

  k pieces of a row hold at most span - (k - 1) * gap tokens, and take per_token times that plus
  k * per_item <= per_token * span + per_item <= capacity.
  """
  streams = {name: stream for name, stream in streams.items() if stream.per_token > 0}
  span = min(int((s.capacity - s.per_item) / s.per_token + 1e-9) for s in streams.values())
  if span < 1:
    raise UserError('config.data.max_length: a row has no room for a token beside its marks')
  return span, max(math.ceil(s.per_item / s.per_token - 1e-9) for s in streams.values())


def dtype_of(key: str) -> type:
  """float32 for weights and values, int32 for everything else."""
  return np.float32 if key.endswith(('weights', 'values')) else np.int32


def one_segment(prefix: str, inputs: Array, segment_ids: Array) -> dict[str, Array]:
  """Keys of a stream whose rows [B, L] hold one segment each (segment_ids 1; 0 is padding)."""
  positions = np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape)
  return {
    f'{prefix}inputs': inputs,
    f'{prefix}positions': positions,
    f'{prefix}segment_ids': segment_ids,
  }


def pack_rows(
  rows: Sequence[Sequence[Mapping[str, np.ndarray]]], streams: Mapping[str, Stream]
) -> dict[str, np.ndarray]:
  """Packs each row of items: dict of arrays [B, capacity of the key's stream].

  An item has the same segment id in every stream. Raises ValueError, naming the stream, where
  items take more than its capacity or the keys of a stream differ in length.
  """
  batch = {}
  for stream in streams.values():
    keys = {key: dtype_of(key) for key in stream.keys}
    if stream.prefix is not None:
      keys |= {f'{stream.prefix}{key}': np.int32 for key in ('segment_ids', 'positions')}
    for key, dtype in keys.items():
      batch[key] = np.zeros((len(rows), stream.capacity), dtype)
  num_keys = sum(len(stream.keys) for stream in streams.values())
  counting = np.arange(max((s.capacity for s in streams.values()), default=0), dtype=np.int32)
  for b, items in enumerate(rows):
    _pack_row({key: array[b] for key, array in batch.items()}, items, streams, counting, num_keys)
  return batch


def _pack_row(row, items, streams, counting, num_keys) -> None:
  starts = dict.fromkeys(streams, 0)
  for segment, features in enumerate(items, start=1):
    if len(features) != num_keys:
      raise ValueError(f'features {sorted(features)} are not those of the streams: {streams}')
    stops = {}
    for name, stream in streams.items():
      start = starts[name]
      length = len(features[stream.keys[0]])
      stops[name] = stop = start + length
      if stop > stream.capacity:
        raise ValueError(f'stream {name!r} overflows: {stop} > capacity {stream.capacity}')
      for key in stream.keys:
        values = features[key]
        if len(values) != length:
          raise ValueError(f'stream {name!r}: {key} has {len(values)} values, not {length}')
        if key in stream.offset:
          values = values + starts[stream.offset[key]]
        row[key][start:stop] = values
      if stream.prefix is not None:
        row[f'{stream.prefix}segment_ids'][start:stop] = segment
        row[f'{stream.prefix}positions'][start:stop] = counting[:length]
    starts = stops


class RowSource(Protocol):
  """Rows by number, each a list of items, such as a `Piece`, of which features are made."""

  def __len__(self) -> int: ...

  def __getitem__(self, row: int) -> list[Any]: ...

  def describe(self, row: int) -> str:
    """What the row holds: which documents (and tokens of them), or which items."""


@dataclasses.dataclass(frozen=True)
class Piece:
  """Virtual positions [start, stop) of a document; those from `length` on are its gap."""

  store: Any
  document: int
  start: int
  stop: int

  @property
  def length(self) -> int:
    """Tokens of the whole document."""
    return int(self.store.lengths[self.document])

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop) of the document, clipped to it: int32 [n]."""
    return self.store.read(self.document, start, stop)


def _virtual_lengths(store: Any, gap: int) -> np.ndarray:
  """Virtual positions of each document, int64: of n > 0 tokens, n + gap.

  The gap is the room that its marks (BOS, EOS, CLS, ...) need. With gap = -1, a document of n
  tokens is n - 1 pairs of input and target.
  """
  lengths = np.asarray(store.lengths, np.int64)
  return np.where(lengths > 0, np.maximum(lengths + gap, 0), 0)


class Concatenated:
  """All documents end to end, cut into rows of `span` virtual positions.

  A document of n > 0 tokens takes n + gap of them. Memory: one int64 a document.
  """

  def __init__(self, store: Any, span: int, gap: int):
    self.store, self.span, self.gap = store, span, gap
    self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(_virtual_lengths(store, gap))])

  @property
  def num_positions(self) -> int:
    """Virtual positions of all documents."""
    return int(self._starts[-1])

  def __len__(self) -> int:
    return -(-self.num_positions // self.span)

  def __getitem__(self, row: int) -> list[Piece]:
    if not 0 <= row < len(self):
      raise IndexError(f'row {row} of {len(self)}')
    first, last = row * self.span, min((row + 1) * self.span, self.num_positions)
    document = int(np.searchsorted(self._starts, first, side='right')) - 1
    pieces = []
    while first < last:
      start, end = int(self._starts[document]), int(self._starts[document + 1])
      stop = min(end, last)
      if stop > first:
        pieces.append(Piece(self.store, document, first - start, stop - start))
        first = stop
      document += 1
    return pieces

  def describe(self, row: int) -> str:
    """Which documents, and tokens of them, the row holds."""
    pieces = ', '.join(f'{p.document}[{p.start}:{p.stop}]' for p in self[row])
    return f'row {row} (documents {pieces})'

  def summary(self) -> str:
    """How much text there is."""
    return f'{self.store.num_documents:,} documents, {self.store.num_tokens:,} tokens'


class Windows:
  """Rows at random offsets: one piece of `span` virtual positions of one document.

  A document is drawn by its length, an offset within it uniformly (of one long text, as nanoGPT);
  documents no longer than a span are drawn whole.
  """

  def __init__(self, store: Any, span: int, gap: int):
    self.store, self.span = store, span
    self._taken = _virtual_lengths(store, gap)
    self._stops = np.cumsum(self._taken)

  def draw(self, rng: np.random.Generator) -> list[Piece]:
    """A row: one piece at an offset drawn with `rng`."""
    document = 0
    if len(self._taken) > 1:
      place = rng.integers(self._stops[-1])
      document = int(np.searchsorted(self._stops, place, side='right'))
    taken = int(self._taken[document])
    start = int(rng.integers(max(taken - self.span + 1, 1)))
    return [Piece(self.store, document, start, min(start + self.span, taken))]


class FirstFit:
  """Whole items side by side: each goes to the first of the open rows where every stream has room.

  lengths: what each item takes of each stream, dict of int arrays [items]. The order in which items
  are placed is drawn with `seed`; None keeps theirs. At most `open_rows` are tried; with 0, every
  item has a row of its own. placed: (items of all rows, int64 [items]; where each row starts in
  them, int64 [rows + 1]), which may be given if they are known.
  """

  def __init__(
    self,
    lengths: Mapping[str, np.ndarray],
    streams: Mapping[str, Stream],
    seed: int | None,
    open_rows: int = OPEN_ROWS,
    placed: tuple[np.ndarray, np.ndarray] | None = None,
  ):
    if placed is None:
      need = np.stack([np.asarray(lengths[name], np.int64) for name in streams], axis=1)
      capacity = np.array([stream.capacity for stream in streams.values()], np.int64)
      for name, taken, room in zip(streams, need.max(axis=0, initial=0), capacity, strict=True):
        if taken > room:
          raise ValueError(f'stream {name!r}: an item takes {taken} > capacity {room}')
      order = np.arange(len(need))
      if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
      placed = _place(need, capacity, order, open_rows)
    self.placed = self._items, self._starts = placed

  def __len__(self) -> int:
    return len(self._starts) - 1

  def __getitem__(self, row: int) -> list[int]:
    """Items of the row, by index."""
    if not 0 <= row < len(self):
      raise IndexError(f'row {row} of {len(self)}')
    return self._items[self._starts[row] : self._starts[row + 1]].tolist()


def _place(
  need: np.ndarray, capacity: np.ndarray, order: np.ndarray, open_rows: int
) -> tuple[np.ndarray, np.ndarray]:
  """`FirstFit.placed` of items that need so much [items, streams], one after the other."""
  if not open_rows:
    return order, np.arange(len(order) + 1)
  rows: list[list[int]] = []
  free = np.full((open_rows, len(capacity)), -1, np.int64)
  row_of = np.zeros(open_rows, np.int64)
  for item in order:
    fits = (free >= need[item]).all(axis=1)
    slot = int(fits.argmax())
    if not fits[slot]:
      slot = int(free.min(axis=1).argmin())  # The fullest row closes.
      free[slot], row_of[slot] = capacity, len(rows)
      rows.append([])
    free[slot] -= need[item]
    rows[row_of[slot]].append(int(item))
  items = np.fromiter((item for row in rows for item in row), np.int64, len(order))
  return items, np.cumsum([0, *map(len, rows)])
