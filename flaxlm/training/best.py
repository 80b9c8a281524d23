"""Which checkpoint is the best: a score of the metrics of validation, of which more is better.

Metrics are what is kept, and scores follow from them: a resume may choose another metric, and what
was measured before is then judged by it, too.
"""

from collections.abc import Mapping

import numpy as np

from flaxlm.config.safety import CheckpointConfig
from flaxlm.errors import UserError, nearest

# Names of metrics of which more is better; every other metric is a loss, an error or a count.
_RISING = (
  *('accuracy', 'precision', 'recall', 'f1', 'mcc', 'pearson', 'spearman', 'exact_match'),
  *('bleu', 'chrf', 'rouge'),
)


def score(config: CheckpointConfig, metrics: Mapping[str, float]) -> float | None:
  """The value of `best_metric`, negated where less is better; None if it is absent or not finite.

  The name of a set, before the last '/', does not say which is better.
  """
  metric = name(config)
  value = float(metrics.get(metric, np.nan))
  if not np.isfinite(value):
    return None
  known = any(part in metric.rpartition('/')[2] for part in _RISING)
  rises = config.best_mode == 'max' or (config.best_mode == 'auto' and known)
  return value if rises else -value


def check(config: CheckpointConfig, metrics: Mapping[str, float]) -> None:
  """Raises UserError if validation gave metrics, but not `best_metric`."""
  if metrics and (metric := name(config)) not in metrics:
    hint = nearest(metric, metrics)
    raise UserError(f'config.checkpoint.best_metric: no metric {metric!r}{hint}')


def name(config: CheckpointConfig) -> str:
  """Of the metric that decides."""
  return config.best_metric or 'loss'
