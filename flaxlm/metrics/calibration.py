"""How far confidence and accuracy lie apart."""

import numpy as np


def expected_error(probabilities: np.ndarray, targets: np.ndarray, bins: int = 15) -> float:
  """Expected calibration error (Guo et al. 2017, section 2), of the predicted label.

  The predictions are put into `bins` of equal width by their confidence, the highest probability;
  the result is |accuracy - mean confidence| of a bin, averaged with the number of its predictions.

  Args:
    probabilities: float [N, C], N > 0.
    targets: int [N].
    bins: of equal width; each holds its upper bound.
  """
  confidence = probabilities.max(-1).astype(np.float64)
  right = probabilities.argmax(-1) == targets
  bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  # Summed over a bin, accuracy - confidence is the sum of right - confidence.
  gaps = np.bincount(bin_of, weights=right - confidence, minlength=bins)
  return float(np.abs(gaps).sum() / len(targets))
