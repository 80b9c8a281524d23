"""Near duplicates among many texts: shingles, MinHash, and the pairs that may be alike.

Two texts are as alike as the Jaccard similarity of their sets of word n-grams (shingles): those
they share, over all that either has. The minimum of a random function over a text's shingles is the
same for two texts with that probability (Broder 1997); texts that agree in all `rows` minima of one
of `bands` groups are candidates (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
section 3.4), so that no two texts are compared that have little in common.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from flaxlm.data.order import mixed_bits

MINIMA = 120  # Divisible by many numbers of rows in a band.
MISSED = 1e-3  # Chance that a pair right at the threshold is no candidate.
SMALL_GROUP = 32  # Texts that share a band, up to which all their pairs are candidates.
KEPT_WORDS = 1 << 20
CHUNK = 1 << 12  # Shingles whose minima are taken at once.
# Scripts that are written without spaces: each character is a word.
_UNSPACED = '\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff'
_WORD = re.compile(rf'[{_UNSPACED}]|[^\W{_UNSPACED}]+')


def normalise(text: str) -> str:
  """The text in Unicode's NFKC, without case, with one space for any white space."""
  return ' '.join(unicodedata.normalize('NFKC', text).casefold().split())


class Shingles:
  """shingles(normalised text) -> hashes of its distinct word n-grams: sorted uint64 [n].

  A text of fewer words is one shingle; one without any is none.
  """

  def __init__(self, ngram: int):
    self._ngram = ngram
    self._ids = _WordIds()

  def __call__(self, text: str) -> np.ndarray:
    words = _WORD.findall(text)
    if not words:
      return np.zeros(0, np.uint64)
    if len(self._ids) > KEPT_WORDS:
      self._ids.clear()
    ids = np.fromiter(map(self._ids.__getitem__, words), np.uint64, len(words))
    length = min(self._ngram, len(words))
    hashes = np.full(len(words) - length + 1, length, np.uint64)
    for i in range(length):
      hashes = mixed_bits(hashes ^ ids[i : i + len(hashes)])
    return np.unique(hashes)


class _WordIds(dict):
  """Word -> 64 bits, the same on any day."""

  def __missing__(self, word: str) -> int:
    digest = hashlib.blake2b(word.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
    self[word] = found = int.from_bytes(digest, 'little')
    return found


def bands_for(threshold: float) -> tuple[int, int]:
  """(bands, rows of each): the most rows with which a pair at the threshold is seldom missed."""
  rows = max(
    r for r in range(1, MINIMA + 1) if r == 1 or (1 - threshold**r) ** (MINIMA // r) <= MISSED
  )
  return MINIMA // rows, rows


class Signer:
  """signer(shingles) -> a key of each band: uint32 [bands]. Fixed random functions."""

  def __init__(self, bands: int, rows: int):
    rng = np.random.default_rng(0)
    number = bands * rows
    self._factors = rng.integers(0, 1 << 64, (number, 1), np.uint64) | np.uint64(1)
    self._offsets = rng.integers(0, 1 << 64, (number, 1), np.uint64)
    self._shape = bands, rows

  def __call__(self, shingles: np.ndarray) -> np.ndarray:
    minima = np.full(len(self._factors), np.iinfo(np.uint64).max)
    for start in range(0, len(shingles), CHUNK):
      values = self._factors * shingles[start : start + CHUNK] + self._offsets
      np.minimum(minima, values.min(axis=1), out=minima)
    keys = np.zeros(self._shape[0], np.uint64)
    for column in minima.reshape(self._shape).T:
      keys = mixed_bits(keys ^ column)
    return (keys >> np.uint64(32)).astype(np.uint32)


def candidates(keys: np.ndarray, most: int) -> tuple[np.ndarray, bool]:
  """Pairs of texts that share a band: (int64 [pairs, 2], sorted, first < second; whether all).

  keys: [texts, bands]; most: pairs to return. In a group of more than SMALL_GROUP texts that share
  a band, each is paired with the first and with the one before it, and not with all.
  """
  found = np.zeros(0, np.int64)
  number, whole = len(keys), True
  for band in keys.T:
    order = np.argsort(band, kind='stable')
    starts = np.flatnonzero(np.r_[True, band[order][1:] != band[order][:-1]])
    sizes = np.diff(np.r_[starts, number])
    parts = [found]
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
      first, second = _pairs(order[start : start + size])
      parts.append(first * number + second)
    found = np.unique(np.concatenate(parts))
    if len(found) > most:
      found, whole = found[:most], False
  return np.stack(np.divmod(found, max(number, 1)), axis=1), whole


def _pairs(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Pairs of the members, which are sorted, of a group."""
  if len(group) <= SMALL_GROUP:
    first, second = np.triu_indices(len(group), 1)
    return group[first], group[second]
  return np.r_[np.full(len(group) - 1, group[0]), group[:-1]], np.r_[group[1:], group[1:]]


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
  """The similarity of two sets of shingles; 0 if both are empty."""
  shared = len(np.intersect1d(first, second, assume_unique=True))
  union = len(first) + len(second) - shared
  return shared / union if union else 0.0


def packed(pairs: Sequence[np.ndarray], sizes: np.ndarray, room: int) -> list[np.ndarray]:
  """Pairs, in their order, in parts whose texts have no more than `room` shingles together.

  sizes: of each text. A single pair may have more.
  """
  parts, begin, held, taken = [], 0, set(), 0
  for number, pair in enumerate(pairs):
    new = {int(text) for text in pair} - held
    need = sum(int(sizes[text]) for text in new)
    if held and taken + need > room:
      parts.append(np.asarray(pairs[begin:number]))
      begin, held, taken = number, set(), 0
      new = {int(text) for text in pair}
      need = sum(int(sizes[text]) for text in new)
    held |= new
    taken += need
  if len(pairs) > begin:
    parts.append(np.asarray(pairs[begin:]))
  return parts
