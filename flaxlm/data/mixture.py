"""Several corpora in one run, mixed row by row in exact proportions.

Which source a row of a batch comes from, and which row of that source it is, are functions of the
place in the order alone, so that a mixture resumes and is divided over hosts as one corpus is.
"""

import fractions
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxlm.data import packing
from flaxlm.errors import UserError

LONGEST_CYCLE = 1 << 16  # Places after which an order of sources repeats; a list is kept of them.


class Interleave:
  """interleave[i] = (source, number): place i holds row `number`, from 0, of a source.

  Of any first n places, each source has fewer than one more or less than its share of n. The order
  repeats after `cycle` places, in which source k has `parts[k]`: the weights in lowest terms.
  Within it, each row has a place before which it is too early and one after which it is too late
  for that bound; of those that are not too early, the most urgent is next. Unit jobs with such
  windows can always all be met, and so are met by this rule (P-fair scheduling, Baruah, Cohen,
  Plaxton and Varvel 1996). Grain's `MapDataset.mix` is 2.4 rows off for weights 1,1,1,1,6.
  """

  def __init__(self, weights: Sequence[float]):
    exact = [fractions.Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    parts = [int(weight * scale) for weight in exact]
    self.parts = tuple(part // math.gcd(*parts) for part in parts)
    self.cycle = sum(self.parts)
    if self.cycle > LONGEST_CYCLE:
      raise UserError(
        f'config.data.weights: {tuple(weights)} in whole numbers are {self.parts}, an order of '
        f'{self.cycle:,} rows before it repeats, and at most {LONGEST_CYCLE:,} can be; round them'
      )
    self._sources, self._earlier = self._make_cycle()

  def __getitem__(self, index: int) -> tuple[int, int]:
    rounds, place = divmod(index, self.cycle)
    source = int(self._sources[place])
    return source, rounds * self.parts[source] + int(self._earlier[place])

  def counts(self, places: int) -> list[int]:
    """How many of the first so many places each source has."""
    rounds, rest = divmod(places, self.cycle)
    found = np.bincount(self._sources[:rest], minlength=len(self.parts))
    return [rounds * part + int(n) for part, n in zip(self.parts, found, strict=True)]

  def _make_cycle(self) -> tuple[np.ndarray, np.ndarray]:
    """The source at each place of a cycle, and how often it came before: int32 [cycle]."""
    sources, earlier = np.zeros((2, self.cycle), np.int32)
    done = [0] * len(self.parts)
    for place in range(self.cycle):
      due = [
        (-(-(n + 1) * self.cycle // part), source)
        for source, (n, part) in enumerate(zip(done, self.parts, strict=True))
        if (place + 1) * part > n * self.cycle
      ]
      _, source = min(due)
      sources[place], earlier[place] = source, done[source]
      done[source] += 1
    return sources, earlier


class Rows:
  """The rows of all sources, one source after the other: len() and [row] -> items.

  sources: name -> rows of each source; weights: of each, relative to the others.
  """

  def __init__(self, sources: Mapping[str, packing.Concatenated], weights: Sequence[float]):
    self.names, self.sources = tuple(sources), tuple(sources.values())
    self.interleave = Interleave(weights)
    self._starts = np.cumsum([0, *(len(rows) for rows in self.sources)]).tolist()

  def __len__(self) -> int:
    return self._starts[-1]

  def _find(self, row: int) -> tuple[int, int]:
    """(source, row of the source) of a row of all."""
    source = int(np.searchsorted(self._starts, row, side='right')) - 1
    return source, row - self._starts[source]

  def __getitem__(self, row: int) -> list[packing.Piece]:
    source, own = self._find(row)
    return self.sources[source][own]

  def describe(self, row: int) -> str:
    """The source, the row in it and the documents of that."""
    source, own = self._find(row)
    return f'{self.names[source]}: {self.sources[source].describe(own)}'

  def number(self, source: int, row: int) -> int:
    """The number among all rows of a source's own row."""
    return self._starts[source] + row


class Order:
  """order[i] = (epoch, row of `rows`): each source goes through its own rows in its own order.

  orders: that of each source (`EpochOrder`, `StreamOrder`); epochs are those of the source.
  """

  def __init__(self, rows: Rows, orders: Sequence[Any]):
    self._rows, self._orders = rows, orders

  def __getitem__(self, index: int) -> tuple[int, int]:
    source, number = self._rows.interleave[index]
    epoch, row = self._orders[source][number]
    return epoch, self._rows.number(source, row)


def stream_counts(interleave: Interleave, streams: int) -> list[int]:
  """How many of the rows of a batch, each of which stays with one source, are of each source.

  Raises UserError where the batch is not a whole number of cycles, so that shares would be off.
  """
  if streams % interleave.cycle:
    raise UserError(
      f"config.data.weights: with sampling='streams' each row of a batch stays with one source, so "
      f'global_batch_size={streams} must be a multiple of {interleave.cycle}, the sum of the '
      f'weights {interleave.parts}'
    )
  return interleave.counts(streams)
