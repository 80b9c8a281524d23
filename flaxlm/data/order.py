"""The order of rows: a permutation of each epoch, computed where it is needed."""

import functools

import numpy as np

# Blocks of an epoch up to which the permutation is made in full: the cipher walks through at least
# 2**16 places, and takes milliseconds where few of them are valid.
SMALL = 1 << 14
ROUNDS = 4  # Of the block cipher that permutes; grain's own default for MapDataset.shuffle.


class EpochOrder:
  """order[i] = (epoch, row): every epoch has every row once, in another order. Constant memory.

  Rows move in blocks of `block` neighbours, so that they are read together; then the rows of
  `window` consecutive blocks are mixed. Each epoch cuts its blocks elsewhere. Small sets (up to
  block * window rows) are mixed throughout.
  """

  def __init__(self, num_rows: int, seed: int, block: int = 16, window: int = 64):
    if num_rows < 1:
      raise ValueError('no rows to order')
    self.num_rows, self.seed, self.block = num_rows, seed, block
    self._size = block * window
    # A window takes a millisecond, and neighbours in the order ask for the same one.
    self._window = functools.lru_cache(maxsize=8)(self._make_window)

  def __reduce__(self) -> tuple:
    return EpochOrder, (self.num_rows, self.seed, self.block, self._size // self.block)

  def __getitem__(self, index: int) -> tuple[int, int]:
    epoch, place = divmod(index, self.num_rows)
    window, place = divmod(place, self._size)
    return epoch, int(self._window(epoch, window)[place])

  def _make_window(self, epoch: int, window: int) -> np.ndarray:
    """Rows at places [window * size, (window + 1) * size) of an epoch: int64 [<= size]."""
    n, block = self.num_rows, self.block
    key = int(mixed_bits(mixed_bits(self.seed) + np.uint64(epoch)))
    start = window * self._size
    places = start + _shuffled(min(self._size, n - start), key ^ (window + 1))
    blocks = np.append(self._blocks(key, window), n // block)
    # The rows after the last whole block do not move; turning the circle does that.
    return (blocks[(places - start) // block] * block + places % block + (key >> 16) % n) % n

  def _blocks(self, key: int, window: int) -> np.ndarray:
    """Where the whole blocks of a window come from."""
    number = self.num_rows // self.block
    per_window = self._size // self.block
    first, last = window * per_window, min((window + 1) * per_window, number)
    if number <= SMALL:
      return _shuffled(number, key)[first:last]
    from grain import experimental  # Takes a second, and imports jax.

    seed = key & 0xFFFFFFFF
    return np.array(
      [experimental.index_shuffle(b, number - 1, seed, ROUNDS) for b in range(first, last)],
      np.int64,
    )


class StreamOrder:
  """order[i] = (epoch, row) of `streams` walks through all rows, side by side.

  Each goes from row to the next one for ever, and from the last to the first; they begin at equal
  distances, and an epoch is over when each has come to where the next one began. Where the rows do
  not divide, some meet the first of the next one's in the same epoch, but no two are at one row
  together.
  """

  def __init__(self, num_rows: int, streams: int):
    if num_rows < streams:
      raise ValueError(f'{streams} streams in {num_rows} rows')
    self.num_rows, self.streams = num_rows, streams
    self._each = -(-num_rows // streams)

  def __getitem__(self, index: int) -> tuple[int, int]:
    step, stream = divmod(index, self.streams)
    return step // self._each, (stream * self.num_rows // self.streams + step) % self.num_rows


def _shuffled(number: int, key: int) -> np.ndarray:
  """A permutation of range(number): int64 [number]."""
  keys = mixed_bits(np.arange(number, dtype=np.uint64) ^ mixed_bits(key & 0xFFFFFFFFFFFFFFFF))
  return np.argsort(keys, kind='stable')


def mixed_bits(value: np.ndarray | int) -> np.ndarray:
  """64 well-mixed bits of each number (the finaliser of SplitMix64)."""
  with np.errstate(over='ignore'):
    z = np.asarray(value).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
