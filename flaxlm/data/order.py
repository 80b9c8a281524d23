"""The order of rows: a permutation of each epoch, computed where it is needed."""

from grain import experimental

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
    self._window = block * window

  def __getitem__(self, index: int) -> tuple[int, int]:
    n = self.num_rows
    epoch, place = divmod(index, n)
    key = _mix(self.seed, epoch)
    first = place - place % self._window
    size = min(self._window, n - first)
    place = first + _permuted(place - first, size, _mix(key, 1 + first))
    blocks = n // self.block
    if place < blocks * self.block:
      block = _permuted(place // self.block, blocks, key)
      place = block * self.block + place % self.block
    # The rows after the last whole block do not move; turning the circle does that.
    return epoch, (place + _mix(key, 0)) % n


def _permuted(index: int, size: int, seed: int) -> int:
  return experimental.index_shuffle(index, max_index=size - 1, seed=seed, rounds=ROUNDS)


def _mix(a: int, b: int) -> int:
  """A 32-bit hash of two numbers (the finaliser of SplitMix64 over their sum)."""
  z = (a * 0x9E3779B97F4A7C15 + b + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
  z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
  z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
  return (z ^ (z >> 31)) & 0xFFFFFFFF
