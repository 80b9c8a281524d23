"""What a run will read, for its log: documents, tokens, rows and epochs of each source."""

from collections.abc import Mapping

import numpy as np

from flaxlm.data import mixture, pipeline


def lines(data: pipeline.Pipeline, total_steps: int) -> list[str]:
  """One line for each source of `data`, and one on how full its first rows are."""
  mixed = isinstance(data.rows, mixture.Rows)
  total = total_steps * data.batch_size
  if mixed:
    names, sources = data.rows.names, data.rows.sources
    parts, counts = data.rows.interleave.parts, data.rows.interleave.counts(total)
  else:
    names, sources, parts, counts = ('train',), (data.rows,), (1,), [total]
  found = []
  for name, rows, part, count in zip(names, sources, parts, counts, strict=True):
    share = f', {part} in {sum(parts)} of the rows' if mixed else ''
    found.append(
      f'{name}: {rows.summary()} in {len(rows):,} rows{share}; '
      f'{total_steps:,} steps read {count:,}: {count / len(rows):.3g} epochs'
    )
  found.append(
    f'packing: {filled(data.batch(0)):.1%} of the positions of the first batch hold tokens'
  )
  return found


def filled(batch: Mapping[str, np.ndarray]) -> float:
  """The share of the positions of all token streams that are not padding."""
  segments = [value for key, value in batch.items() if key.endswith('segment_ids')]
  return sum(np.count_nonzero(s) for s in segments) / sum(s.size for s in segments)
