"""Batches as a function of the step: rows in a drawn order, features of their items, packed.

Nothing here has a state: `batch(step)` is the same on any day, on any number of hosts (each makes
its part of the global batch), after any resume.
"""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from flaxlm.config.data import DataConfig
from flaxlm.config.schema import Config
from flaxlm.data import cache, mixture, packing, packing_index, splits, store, workers
from flaxlm.data.order import EpochOrder, StreamOrder
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError

TRAIN, EVAL = 0, 1  # Keep the random numbers of training and evaluation apart.
# (which of the equal parts of a global batch this host makes, how many there are)
Parts = tuple[Sequence[int], int]
_ALL: Parts = ((0,), 1)
_COMPARED = 64  # Rows of a batch by which a resume notices that the data have changed.
WHOLE_ROW = 2**63  # The number, of no item, under which a row draws for itself.


class ItemRng:
  """Random numbers of an item, from (seed, epoch, row, number in the row) and nothing else.

  Philox is a function of key and counter, so the item's coordinates are the counter's high words;
  setting them takes microseconds where a new generator would take tens.
  """

  def __init__(self, seed: int, purpose: int):
    self._bits = np.random.Philox(0)
    self._generator = np.random.Generator(self._bits)
    self._key = np.array([seed, purpose], np.uint64)
    self._empty = np.zeros(4, np.uint64)

  def at(self, epoch: int, row: int, number: int) -> np.random.Generator:
    """The generator of an item; valid until the next call."""
    counter = np.array([0, number, row, epoch], np.uint64)
    self._bits.state = {
      'bit_generator': 'Philox',
      'state': {'counter': counter, 'key': self._key},
      'buffer': self._empty,
      'buffer_pos': 4,
      'has_uint32': 0,
      'uinteger': 0,
    }
    return self._generator


class PackedItems:
  """Labelled items, packed first-fit: [row] is the list of its items; of one, if not `together`.

  data: in whose cache the index of many items is kept; None keeps none.
  """

  store = None  # Only running text has one.

  def __init__(
    self,
    objective: Any,
    items: Sequence[Any],
    seed: int | None,
    together: bool = True,
    data: DataConfig | None = None,
  ):
    self.items = items
    taken = [objective.lengths(item) for item in items]
    lengths = {name: np.array([t[name] for t in taken], np.int64) for name in objective.streams}
    pack = functools.partial(packing_index.first_fit, data) if data else packing.FirstFit
    self._rows = pack(lengths, objective.streams, seed, packing.OPEN_ROWS if together else 0)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, row: int) -> list[Any]:
    return [self.items[i] for i in self._rows[row]]

  def describe(self, row: int) -> str:
    """Which items the row holds."""
    return f'row {row} (items {", ".join(map(str, self._rows[row]))})'

  def summary(self) -> str:
    """How many items there are."""
    return f'{len(self.items):,} labelled rows'


class _Rows:
  """What training and evaluation share: a row source, and features of its items."""

  def __init__(self, config: Config, objective: Any, rows: packing.RowSource, parts: Parts):
    self.config, self.objective, self.rows = config, objective, rows
    self._parts = parts

  def _part(self, batch_size: int) -> list[int]:
    """The rows of a global batch that this host makes; see `sharding.host_parts`."""
    parts, count = self._parts
    if batch_size % count:
      raise UserError(
        f'config.global_batch_size: {batch_size} rows do not divide into {count} parts'
      )
    size = batch_size // count
    return [row for part in parts for row in range(part * size, (part + 1) * size)]

  def _features(self, items: Sequence[Any], rng: ItemRng, epoch: int, row: int) -> list[dict]:
    maker = self._maker(rng, epoch, row)
    segments = []
    for number, item in enumerate(items):
      generator = rng.at(epoch, row, number)
      found = maker.features(self._item(item, generator), generator)
      if found is not None:
        segments += found if isinstance(found, list) else [found]
    return segments

  def _item(self, item: Any, rng: np.random.Generator) -> Any:
    """The item as features are made of it."""
    del rng
    return item

  def _maker(self, rng: ItemRng, epoch: int, row: int) -> Any:
    """What makes the features of a row: the objective, or what it draws for the row."""
    of_row = self.objective.of_row
    return of_row(rng.at(epoch, row, WHOLE_ROW)) if of_row else self.objective


class Pipeline(_Rows):
  """Training batches.

  rows: of one source or a `mixture.Rows`; with `sampling='windows'`, `windows`, one for each
  source, draws them instead. augment: (item, rng) -> item, or None. corpus: a hash of all text or
  rows. Public: rows, corpus, batch_size, steps_per_epoch, num_positions (of tokens, in a global
  batch).
  """

  def __init__(
    self,
    config: Config,
    objective: Any,
    rows: packing.RowSource,
    windows: Sequence[packing.Windows] = (),
    parts: Parts = _ALL,
    augment: Callable[[Any, np.random.Generator], Any] | None = None,
    corpus: str = '',
  ):
    super().__init__(config, objective, rows, parts)
    self.corpus = corpus
    self._windows = windows
    self._augment = augment
    self.batch_size = config.global_batch_size
    self.steps_per_epoch = len(rows) / self.batch_size
    streams = objective.streams.values()
    self.num_positions = self.batch_size * sum(s.capacity for s in streams if s.prefix is not None)
    self._mine = self._part(self.batch_size)
    self._order = _order(config, rows)

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """This host's part of the batch of a step (from 0): dict of [B, ...]."""
    return self._rows_of(step, self._mine)

  def first_rows(self, step: int) -> dict[str, np.ndarray]:
    """The first rows of the global batch of a step, `_COMPARED` at most, on every host."""
    return self._rows_of(step, range(min(self.batch_size, _COMPARED)))

  def _rows_of(self, step: int, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    rng = ItemRng(self.config.seed, TRAIN)
    rows = []
    for b in numbers:
      if not self._windows:
        epoch, row = self._order[step * self.batch_size + b]
        rows.append(self._features(self.rows[row], rng, epoch, row))
      else:
        maker = self._maker(rng, step, b)
        pieces, generator = self._draw(step, b, rng)
        features = (maker.features(p, generator) for p in pieces)
        rows.append([f for f in features if f is not None])
    return packing.pack_rows(rows, self.objective.streams)

  def _draw(
    self, step: int, b: int, rng: ItemRng
  ) -> tuple[list[packing.Piece], np.random.Generator]:
    """The window that row b of a step is, and the generator that drew it, for its features."""
    source = 0
    if isinstance(self.rows, mixture.Rows):
      source, _ = self.rows.interleave[step * self.batch_size + b]
    generator = rng.at(step, b, 0)
    return self._windows[source].draw(generator), generator

  def _item(self, item: Any, rng: np.random.Generator) -> Any:
    return self._augment(item, rng) if self._augment else item

  def empty_batch(self) -> dict[str, np.ndarray]:
    """This host's part of a batch, all padding."""
    return packing.pack_rows([[]] * len(self._mine), self.objective.streams)

  def iterate(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches from `start_step` on, without end, made ahead by `data.num_workers` processes.

    Without workers, a thread makes `data.prefetch` of them ahead. `close` must be called.
    """
    options = self.config.data
    if options.num_workers:
      return workers.Workers(self, start_step, options.num_workers, options.prefetch)
    return self._iterate_here(start_step, options.prefetch)

  def _iterate_here(self, start_step: int, ahead: int) -> Iterator[dict[str, np.ndarray]]:
    if not ahead:
      yield from map(self.batch, itertools.count(start_step))
    pool = futures.ThreadPoolExecutor(1, thread_name_prefix='batches')
    try:
      steps = itertools.count(start_step)
      made = deque(pool.submit(self.batch, next(steps)) for _ in range(ahead))
      while True:
        batch = made.popleft().result()
        made.append(pool.submit(self.batch, next(steps)))
        yield batch
    finally:
      pool.shutdown(wait=True, cancel_futures=True)

  def describe(self, step: int) -> str:
    """The rows of this host's part of a step's batch, and the documents they come from."""
    if self._windows:
      rng = ItemRng(self.config.seed, TRAIN)
      drawn = [self._draw(step, b, rng)[0][0] for b in self._mine]
      return '; '.join(f'document {p.document} from token {p.start}' for p in drawn)
    places = [self._order[step * self.batch_size + b] for b in self._mine]
    return f'epoch {places[0][0]}: ' + '; '.join(self.rows.describe(row) for _, row in places)


class EvalPipeline(_Rows):
  """All rows in order, always with the same random numbers; empty rows fill the last batch.

  Where a memory goes from batch to batch, row b of a batch goes on where that of the batch before
  ended: the b-th of `batch_size` equal parts of the rows is read there.

  store; num_bytes: of the UTF-8 text. Both are None for labelled items.
  """

  def __init__(
    self,
    config: Config,
    objective: Any,
    rows: packing.Concatenated | PackedItems,
    parts: Parts = _ALL,
  ):
    super().__init__(config, objective, rows, parts)
    self.store = rows.store
    self.num_bytes = self.store.num_bytes if self.store else None
    self.batch_size = config.evaluation_rows
    self._mine = self._part(self.batch_size)

  def __len__(self) -> int:
    """Batches."""
    return -(-len(self.rows) // self.batch_size)

  def batch(self, number: int) -> dict[str, np.ndarray]:
    """This host's part of a batch: dict of [B, ...]."""
    rng = ItemRng(self.config.evaluation.seed, EVAL)
    numbers = [self._number(number, b) for b in self._mine]
    rows = [self._features(self.rows[i], rng, 0, i) if i < len(self.rows) else [] for i in numbers]
    return packing.pack_rows(rows, self.objective.streams)

  def _number(self, batch: int, b: int) -> int:
    """Which row is row b of a batch; there may be none of that number."""
    if self.objective.recurrent:
      return b * len(self) + batch
    return batch * self.batch_size + b

  def share(self, batches: int) -> float:
    """How much of running text is predicted in the first so many batches: of its tokens, up to 1.

    The first token of a document without marks is not.
    """
    predicted = min(self.rows.num_positions / self.store.num_tokens, 1.0)
    if batches >= len(self):
      return predicted
    span, total = self.rows.span, self.rows.num_positions
    numbers = (self._number(batch, b) for batch in range(batches) for b in range(self.batch_size))
    held = sum(min(max(total - number * span, 0), span) for number in numbers)
    return predicted * held / total

  def batches(self, max_batches: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """All batches, or the first so many."""
    number = len(self) if max_batches is None else min(max_batches, len(self))
    return map(self.batch, range(number))


def _order(config: Config, rows: packing.RowSource) -> Any:
  """order[i] = (epoch, row) of place i: row b of step s is place s * global_batch_size + b."""
  mixed = isinstance(rows, mixture.Rows)
  sources = rows.sources if mixed else (rows,)
  if config.data.sampling == 'streams':
    size = config.global_batch_size
    counts = mixture.stream_counts(rows.interleave, size) if mixed else [size]
    names = rows.names if mixed else (config.data.train,)
    for name, source, count in zip(names, sources, counts, strict=True):
      _check_streams(size, count, name, len(source))
    orders = [StreamOrder(len(r), n) for r, n in zip(sources, counts, strict=True)]
  else:
    # A seed of its own for each source, which is no other run's: two of one size would go together.
    seeds = [config.seed + (k << 32) for k in range(len(sources))]
    block = config.data.shuffle_block
    orders = [EpochOrder(len(r), seed, block) for r, seed in zip(sources, seeds, strict=True)]
  return mixture.Order(rows, orders) if mixed else orders[0]


def _check_streams(batch_size: int, streams: int, name: str, num_rows: int) -> None:
  """Raises UserError where a source has fewer rows than rows of a batch that walk through it."""
  if num_rows < streams:
    fits = batch_size * num_rows // streams
    raise UserError(
      f"config.global_batch_size: with sampling='streams' each row of a batch is elsewhere in the "
      f'text, but {name} has only {num_rows} rows for {streams} of {batch_size}; give more text, '
      f'or at most {fits}'
    )


def train_pipeline(
  config: Config, tokenizer: Tokenizer, objective: Any, parts: Parts = _ALL
) -> Pipeline:
  """Training batches from the text of `config.data.train`; parts: what this host makes."""
  documents = splits.training(config.data)
  sources = {
    name: _concatenated(
      store.for_documents(config.data, part, tokenizer), objective, name or part.name
    )
    for name, part in (documents.sources or {'': documents}).items()
  }
  rows = mixture.Rows(sources, documents.weights) if documents.sources else sources['']
  windows = []
  if config.data.sampling == 'windows':
    windows = [packing.Windows(r.store, objective.span, objective.gap) for r in sources.values()]
  corpus = cache.key([r.store.digest() for r in sources.values()])
  return Pipeline(config, objective, rows, windows, parts, corpus=corpus)


def eval_pipelines(
  config: Config,
  tokenizer: Tokenizer,
  objective: Any,
  parts: Parts = _ALL,
  test: bool = False,
) -> dict[str, EvalPipeline]:
  """Validation sets by name; with `test`, also 'test' where `config.data.test` is set."""
  found = splits.validation(config.data)
  if test and config.data.test:
    found['test'] = splits.test(config.data)
  return {
    name: EvalPipeline(
      config,
      objective,
      _concatenated(
        store.for_documents(config.data, documents, tokenizer), objective, documents.name
      ),
      parts,
    )
    for name, documents in found.items()
  }


def _concatenated(tokens: store.TokenStore, objective: Any, name: str) -> packing.Concatenated:
  rows = packing.Concatenated(tokens, objective.span, objective.gap)
  if not len(rows):
    raise UserError(f'config.data: {name} is too short: {tokens.num_tokens} tokens give no row')
  return rows
