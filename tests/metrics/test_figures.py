"""The picture of a confusion matrix shows its shares."""

import io

import numpy as np

from flaxlm.metrics import figures


def pixels(png):
  from matplotlib import image

  return image.imread(io.BytesIO(png), format='png')


def test_another_matrix_is_another_picture_and_counts_alone_are_written():
  sure = {'a': {'a': 8, 'b': 0}, 'b': {'a': 0, 'b': 2}}
  unsure = {'a': {'a': 4, 'b': 4}, 'b': {'a': 1, 'b': 1}}
  first, second = pixels(figures.confusion(sure)), pixels(figures.confusion(unsure))
  assert first.shape == second.shape and first.shape[0] > 100
  assert not np.array_equal(first, second)
  # The darkest blue is a share of 1: it is there for the sure one, also of the rare label.
  dark = lambda image: np.mean((image[..., 2] > 0.4) & (image[..., 0] < 0.1))
  assert dark(first) > dark(second) + 0.1


def test_labels_are_no_formulas():
  names = ['$_$', '$0-$10', 'a_b']
  matrix = {a: dict.fromkeys(names, 1) for a in names}
  assert pixels(figures.confusion(matrix)).shape[0] > 100


def test_many_labels_and_a_label_without_rows():
  names = [f'label {i}' for i in range(30)]
  matrix = {a: {b: int(a == b and a != names[0]) for b in names} for a in names}
  assert pixels(figures.confusion(matrix)).shape[0] > 300
