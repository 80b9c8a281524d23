"""Against a loop over bins, as the paper defines it."""

import numpy as np

from flaxlm.metrics import calibration


def by_hand(probabilities, targets, bins):
  confidence, predicted = probabilities.max(1), probabilities.argmax(1)
  total = 0.0
  for m in range(bins):
    inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
    if inside.any():
      accuracy = np.mean(predicted[inside] == targets[inside])
      total += inside.mean() * abs(accuracy - confidence[inside].mean())
  return total


def test_against_bins_by_hand():
  rng = np.random.default_rng(0)
  for classes in (2, 5):
    probabilities = rng.dirichlet(np.full(classes, 0.5), 200)
    targets = rng.integers(0, classes, 200)
    for bins in (1, 10, 15):
      found = calibration.expected_error(probabilities, targets, bins)
      np.testing.assert_allclose(found, by_hand(probabilities, targets, bins), atol=1e-12)


def test_confident_and_right_is_calibrated_confident_and_wrong_is_not():
  certain = np.eye(3)[[0, 1, 2, 0]]
  assert calibration.expected_error(certain, np.array([0, 1, 2, 0])) == 0.0
  assert calibration.expected_error(certain, np.array([1, 2, 0, 1])) == 1.0
