"""Rates count the stretches spent training, the time left everything."""

import numpy as np
import pytest

from flaxlm.training import clock


def test_only_stretches_of_training_count(monkeypatch):
  now = iter([0.0, 2.0, 4.0, 100.0, 101.0])
  monkeypatch.setattr(clock.time, 'monotonic', lambda: next(now))
  watch = clock.Clock()
  for _ in range(3):
    watch.step(50.0)  # The first, which compiles, only starts it.
  watch.pause()
  watch.step(50.0)  # So does the first after an evaluation.
  watch.step(50.0)
  assert watch.take_rate() == 150 / (2 + 2 + 1)
  assert np.isnan(watch.take_rate()) and watch.shown_rate() == 30
  assert watch.seconds_left(8) == pytest.approx(8 * 101 / 4)
