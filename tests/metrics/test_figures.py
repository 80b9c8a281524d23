"""The picture of a confusion matrix shows its shares, counts and labels."""

import numpy as np

from flaxlm.metrics import figures


def drawn(matrix):
  """(shares, texts of the cells, labels of the ticks) of a picture that can be written."""
  figure = figures.confusion(matrix)
  assert figures.png(figure).startswith(b'\x89PNG')
  axes = figure.axes[0]
  rows, columns = ([t.get_text() for t in a.get_ticklabels()] for a in (axes.yaxis, axes.xaxis))
  assert rows == columns
  return np.asarray(axes.images[0].get_array()), axes.texts, rows


def test_colours_are_shares_of_the_label_and_cells_hold_counts():
  """Also of a rare label; what stands on a dark cell is white."""
  shares, cells, labels = drawn({'a': {'a': 6, 'b': 2}, 'b': {'a': 0, 'b': 2}})
  np.testing.assert_array_equal(shares, [[0.75, 0.25], [0, 1]])
  assert labels == ['a', 'b']
  found = [(cell.get_position(), cell.get_text(), cell.get_color()) for cell in cells]
  assert found == [
    ((0, 0), '6', 'white'), ((1, 0), '2', 'black'), ((0, 1), '0', 'black'), ((1, 1), '2', 'white')
  ]  # fmt: skip


def test_axes_say_what_is_label_and_what_prediction():
  axes = figures.confusion({'a': {'a': 1}}).axes[0]
  assert (axes.get_xlabel(), axes.get_ylabel()) == ('prediction', 'label')


def test_labels_are_no_formulas():
  names = ['$_$', '$0-$10', 'a_b']
  assert drawn({a: dict.fromkeys(names, 1) for a in names})[2] == names


def test_many_labels_and_a_label_without_rows():
  """No numbers, which could not be read; the empty row is no NaN."""
  names = [f'label {i}' for i in range(30)]
  matrix = {a: {b: int(a == b and a != names[0]) for b in names} for a in names}
  shares, cells, labels = drawn(matrix)
  assert labels == names and not cells
  np.testing.assert_array_equal(shares, np.diag([0.0] + [1.0] * 29))
