"""The index of first-fit packing, made once and kept in the cache, for all hosts and runs."""

import hashlib
import io
import json
from collections.abc import Mapping

import numpy as np
from etils import epath

from flaxlm import distributed, terminal
from flaxlm.config.data import DataConfig
from flaxlm.data import cache, packing

FORMAT = 1
LEAST = 50_000  # Items from which on an index is kept; fewer are placed in half a second.


def first_fit(
  config: DataConfig,
  lengths: Mapping[str, np.ndarray],
  streams: Mapping[str, packing.Stream],
  seed: int | None,
  open_rows: int,
) -> packing.FirstFit:
  """As `packing.FirstFit`; that of many items is read from the cache if it is there.

  The name of an index is a hash of all that it follows from.
  """
  number = len(next(iter(lengths.values())))
  if number < LEAST:
    return packing.FirstFit(lengths, streams, seed, open_rows)
  capacities = [stream.capacity for stream in streams.values()]
  digest = hashlib.sha256(json.dumps([FORMAT, seed, open_rows, capacities]).encode())
  for name in streams:
    digest.update(np.asarray(lengths[name], np.int64).tobytes())
  directory = cache.directory(config) / 'packing' / digest.hexdigest()[:20]

  def make() -> None:
    terminal.phase('data', f'packing {number:,} rows')
    _write(directory, packing.FirstFit(lengths, streams, seed, open_rows))

  distributed.prepare((directory / 'rows.npz').exists, make, f'pack {number:,} rows')
  with (
    cache.intact(directory),
    np.load(io.BytesIO((directory / 'rows.npz').read_bytes())) as kept,
  ):
    return packing.FirstFit(lengths, streams, seed, open_rows, (kept['items'], kept['starts']))


def _write(directory: epath.Path, rows: packing.FirstFit) -> None:
  items, starts = rows.placed
  content = io.BytesIO()
  np.savez(content, items=items, starts=starts)
  with cache.staged(directory) as temporary:
    (temporary / 'rows.npz').write_bytes(content.getvalue())
