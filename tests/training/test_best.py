"""Which of several measurements is the best."""

import pytest

from flaxlm.config.safety import CheckpointConfig
from flaxlm.errors import UserError
from flaxlm.training import best


def test_scores_rise_for_accuracies_and_fall_for_losses():
  # The name of a set says nothing of its metrics.
  for name, better in (
    *(('accuracy', 0.9), ('mlm_accuracy', 0.9), ('other/macro_f1', 0.9)),
    *(('loss', 0.1), ('f1-races/loss', 0.1)),
  ):
    config = CheckpointConfig(best_metric=name)
    assert best.score(config, {name: better}) > best.score(config, {name: 0.5})
    for mode, sign in (('max', 1), ('min', -1)):  # Whatever the name says.
      told = CheckpointConfig(best_metric=name, best_mode=mode)
      assert best.score(told, {name: 0.25}) == sign * 0.25
    assert best.score(config, {name: float('nan')}) is best.score(config, {}) is None
    with pytest.raises(UserError, match=f"best_metric: no metric '{name}'"):
      best.check(config, {'other': 1.0})
