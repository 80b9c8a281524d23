"""Pictures of results, as PNG."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

# Above this many labels, numbers in the cells could not be read.
NUMBERED = 20


def png(figure: Any) -> bytes:
  """A matplotlib Figure as the bytes of a PNG."""
  content = io.BytesIO()
  figure.savefig(content, format='png')
  return content.getvalue()


def confusion(matrix: Mapping[str, Mapping[str, int]]) -> Any:
  """The Figure of a confusion matrix: target -> predicted -> how many.

  The colour is the share of the target's examples, so that a rare label is seen as well.
  """
  from matplotlib.figure import Figure

  rows, columns = list(matrix), list(next(iter(matrix.values())))
  counts = np.array([[matrix[row][column] for column in columns] for row in rows])
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  side = 2.5 + 0.45 * min(len(columns), 4 * NUMBERED)
  figure = Figure(figsize=(side + 0.8, side), dpi=120, layout='constrained')
  axes = figure.add_subplot()
  image = axes.imshow(shares, vmin=0.0, vmax=1.0, cmap='Blues')
  axes.set_xticks(range(len(columns)), columns, rotation=45, ha='right', parse_math=False)
  axes.set_yticks(range(len(rows)), rows, parse_math=False)
  axes.set_xlabel('prediction')
  axes.set_ylabel('label')
  if len(columns) <= NUMBERED:
    for (row, column), count in np.ndenumerate(counts):
      colour = 'white' if shares[row, column] > 0.5 else 'black'
      axes.text(column, row, str(count), ha='center', va='center', color=colour)
  figure.colorbar(image, ax=axes, label='share of the label')
  return figure
