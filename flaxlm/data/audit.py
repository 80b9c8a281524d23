"""Exact and near duplicates inside sets of documents, and between training and the others.

Two passes over the texts. The first keeps, of each document, a hash of its normalised text and the
keys of its MinHash bands: about 110 bytes. The second reads those documents again that may be near
another and computes the true similarity, so that everything reported is so.
"""

import array
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from flaxlm import terminal
from flaxlm.data import minhash

TRAIN = 'train'
MOST_CANDIDATES = 20_000_000  # Pairs; of more, the first are compared.
ROOM = 1 << 26  # Shingles, of 8 bytes, that are held at once to compare texts.
Located = Callable[[], Iterator[tuple[str, str]]]


@dataclasses.dataclass
class Found:
  """What an audit found; `as_dict` is JSON-able.

  sets: name -> documents, exact (documents whose text came before in the set), near (texts that
  have a near duplicate in the set). between: name of another set than training -> documents that
  are exactly in training, and others that are near one of training. examples: kind ('exact',
  'near'), the sets and places of two documents, and their similarity. complete: whether all
  candidates were compared.
  """

  sets: dict[str, dict[str, int]]
  between: dict[str, dict[str, int]]
  examples: list[dict[str, Any]]
  parameters: dict[str, Any]
  complete: bool

  def as_dict(self) -> dict[str, Any]:
    """Everything, as JSON has it."""
    return dataclasses.asdict(self)


def audit(
  sets: Mapping[str, Located],
  threshold: float = 0.8,
  ngram: int = 5,
  examples: int = 5,
  total: int | None = None,
) -> Found:
  """Looks for duplicates.

  Args:
    sets: name -> (where it stands, text) of each document, starting over at each call. The set
      `train`, where there is one, is compared with each of the others.
    threshold: Jaccard similarity of the sets of word n-grams from which on two texts are near.
    ngram: words in a shingle.
    examples: most examples of each kind inside a set, and between two.
    total: documents of all sets, for the progress bar.
  """
  index = _Index(sets, threshold, ngram, total or 0)
  pairs, complete = minhash.candidates(index.keys, MOST_CANDIDATES)
  counts = _Counts(index, examples)
  counts.exact()
  for first, second, similarity in _similarities(sets, index, pairs, ngram, counts):
    if similarity >= threshold:
      counts.near(first, second, similarity)
  if not complete:
    terminal.warn(f'more than {MOST_CANDIDATES:,} pairs may be near; the rest were not compared')
  bands, rows = index.bands
  parameters = {'threshold': threshold, 'ngram': ngram, 'bands': bands, 'rows_in_band': rows}
  return Found(*counts.result(), parameters, complete)


class _Index:
  """What the first pass keeps.

  Public: names; set_of [documents]; text_of [documents]: number of the text, equal ones have the
  same; first_of [texts]: the first document with it; keys [texts, bands]; sizes [texts]: shingles.
  """

  def __init__(self, sets: Mapping[str, Located], threshold: float, ngram: int, total: int):
    self.names = tuple(sets)
    self.bands = minhash.bands_for(threshold)
    shingles, sign = minhash.Shingles(ngram), minhash.Signer(*self.bands)
    digests, keys, sizes, set_of = (array.array(code) for code in 'QIIB')
    with terminal.bar('read', total, 'documents') as bar:
      for number, located in enumerate(sets.values()):
        for _, raw in located():
          text = minhash.normalise(raw)
          found = shingles(text)
          digest = hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=16).digest()
          digests.frombytes(digest)
          keys.frombytes(sign(found).tobytes())
          sizes.append(len(found))
          set_of.append(number)
          bar.advance()
    self.set_of = np.asarray(set_of, np.int64)
    high, low = np.frombuffer(digests, np.uint64).reshape(-1, 2).T if digests else ([], [])
    order = np.lexsort((np.arange(len(self.set_of)), low, high))
    new = np.ones(len(order), bool)
    if len(order):
      new[1:] = (high[order][1:] != high[order][:-1]) | (low[order][1:] != low[order][:-1])
    firsts = order[new]
    # Texts are numbered as they first occur.
    rank = np.empty(len(firsts), np.int64)
    rank[np.argsort(firsts, kind='stable')] = np.arange(len(firsts))
    self.text_of = np.empty(len(order), np.int64)
    self.text_of[order] = rank[np.cumsum(new) - 1]
    self.first_of = np.sort(firsts)
    self.keys = np.frombuffer(keys, np.uint32).reshape(-1, self.bands[0])[self.first_of]
    self.sizes = np.asarray(sizes, np.int64)[self.first_of]


def _similarities(
  sets: Mapping[str, Located],
  index: _Index,
  pairs: np.ndarray,
  ngram: int,
  counts: '_Counts',
) -> Iterator[tuple[int, int, float]]:
  """(first text, second text, similarity) of each pair; tells `counts` where the texts stand."""
  parts = minhash.packed(pairs, index.sizes, ROOM) or [pairs]
  shingles = minhash.Shingles(ngram)
  for number, part in enumerate(parts, start=1):
    wanted = {int(index.first_of[text]): int(text) for text in np.unique(part)}
    places = set(np.flatnonzero(np.isin(index.text_of, part)).tolist())
    places |= counts.shown if number == 1 else set()
    held = {}
    label = 'compare' if len(parts) == 1 else f'compare, part {number} of {len(parts)}'
    with terminal.bar(label, len(index.set_of) + len(part), 'documents and pairs') as bar:
      documents = itertools.chain.from_iterable(located() for located in sets.values())
      if places:
        for document, (where, raw) in enumerate(documents):
          if document in places:
            counts.where[document] = where
          if document in wanted:
            held[wanted[document]] = shingles(minhash.normalise(raw))
          bar.advance()
      for first, second in part.tolist():
        yield first, second, minhash.jaccard(held[first], held[second])
        bar.advance()
    counts.forget()


class _Counts:
  """Duplicates counted, set by set, and the first of them as examples.

  shown: documents of the examples of exact duplicates; where: document -> place, as it is read.
  """

  def __init__(self, index: _Index, examples: int):
    self._index, self._most = index, examples
    self.where: dict[int, str] = {}
    self.shown: set[int] = set()
    self._exact: list[tuple[int, int]] = []
    self._found: list[dict[str, Any]] = []
    sets, texts = len(index.names), len(index.first_of)
    # Where each text occurs first in each set; -1: nowhere.
    self._first = np.full((sets, texts), -1, np.int64)
    for number in range(sets):
      documents = np.flatnonzero(index.set_of == number)
      text, place = np.unique(index.text_of[documents], return_index=True)
      self._first[number, text] = documents[place]
    self._near = np.zeros((sets, texts), bool)
    self._near_train = np.zeros((sets, texts), bool)
    self._near_shown: dict[tuple[int, int], int] = {}
    self._train = index.names.index(TRAIN) if TRAIN in index.names else None

  def exact(self) -> None:
    """Chooses the examples of equal documents."""
    index = self._index
    for number in range(len(index.names)):
      documents = np.flatnonzero(index.set_of == number)
      firsts = self._first[number, index.text_of[documents]]
      again = documents[firsts != documents][: self._most]
      self._exact += [(int(self._first[number, index.text_of[d]]), int(d)) for d in again]
      if self._train is not None and number != self._train:
        inside = self._first[self._train, index.text_of[documents]]
        leaks = np.flatnonzero(inside >= 0)[: self._most]
        self._exact += [(int(inside[i]), int(documents[i])) for i in leaks]
    self.shown = {document for pair in self._exact for document in pair}

  def near(self, first: int, second: int, similarity: float) -> None:
    """Counts two texts as near, in every set that has both, and between training and the others."""
    for number in range(len(self._index.names)):
      if min(self._first[number, first], self._first[number, second]) >= 0:
        self._near[number, [first, second]] = True
        self._show(number, number, first, second, similarity)
      if self._train is None or number == self._train:
        continue
      for a, b in ((first, second), (second, first)):
        if self._first[self._train, a] >= 0 and self._first[number, b] >= 0:
          self._near_train[number, b] = True
          self._show(self._train, number, a, b, similarity)

  def _show(self, a: int, b: int, first: int, second: int, similarity: float) -> None:
    shown = self._near_shown.get((a, b), 0)
    if shown < self._most:
      self._near_shown[a, b] = shown + 1
      documents = self._first[[a, b], [first, second]]
      places = [self.where[int(document)] for document in documents]
      sets = [self._index.names[number] for number in (a, b)]
      self._found.append(
        {'kind': 'near', 'sets': sets, 'places': places, 'similarity': round(similarity, 4)}
      )

  def forget(self) -> None:
    """Drops the places of documents that no example needs any more."""
    self.where = {
      document: place for document, place in self.where.items() if document in self.shown
    }

  def result(self) -> tuple[dict, dict, list]:
    """(sets, between, examples) of `Found`."""
    index, sets, between = self._index, {}, {}
    for number, name in enumerate(index.names):
      texts = index.text_of[index.set_of == number]
      distinct = self._first[number] >= 0
      sets[name] = {
        'documents': len(texts),
        'exact': len(texts) - int(distinct.sum()),
        'near': int((self._near[number] & distinct).sum()),
      }
      if self._train is not None and number != self._train:
        inside = self._first[self._train] >= 0
        between[name] = {
          'documents': len(texts),
          'exact': int(inside[texts].sum()),
          'near': int((self._near_train[number] & ~inside)[texts].sum()),
        }
    exact = [
      {
        'kind': 'exact',
        'sets': [index.names[index.set_of[d]] for d in pair],
        'places': [self.where[d] for d in pair],
        'similarity': 1.0,
      }
      for pair in self._exact
    ]
    return sets, between, exact + self._found
