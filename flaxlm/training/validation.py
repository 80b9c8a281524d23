"""Validation while training: when, on which sets, and when to stop early."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from flaxlm import terminal
from flaxlm.evaluation.evaluator import Evaluation, evaluate
from flaxlm.training import best, checkpoint, writers
from flaxlm.types import TrainState

if TYPE_CHECKING:
  from flaxlm.training.experiment import Experiment

# Metrics of an evaluation that fit on a line; metrics.jsonl has all.
_SHOWN = 6
# Batches in which a metric is looked for before the first step, if one does not give it.
_TRIED = 16
_NOTHING: Mapping[str, Any] = {}


class Validation:
  """Evaluations of a run, and what follows from them.

  asked_to_stop: polled between batches; an evaluation gives up, without a trace, when it is true.
  """

  def __init__(
    self,
    experiment: 'Experiment',
    workdir: epath.Path,
    checkpoints: checkpoint.Checkpoints,
    log: writers.Writers,
    asked_to_stop: Callable[[], Any],
  ):
    self._experiment, self._workdir = experiment, workdir
    self._config = experiment.config.evaluation
    self._best = experiment.config.checkpoint
    self._checkpoints, self._writers = checkpoints, log
    self._asked_to_stop = asked_to_stop
    self._last: tuple[int, dict[str, float]] = (-1, {})
    self._scores: dict[int, float] = {}
    if self._config.patience:
      self._recall_scores()

  def is_due(self, step: int) -> bool:
    """Whether the state after `step` updates is evaluated."""
    every = self._config.every_steps
    last = step == self._experiment.total_steps
    return last or bool(every and step and step % every == 0)

  def check_best_metric(self, state: TrainState) -> None:
    """Raises UserError if there is no metric `best_metric`, from a batch instead of after hours.

    What a batch does not give, a few more may: tags are scored where a sentence is there whole.
    """
    if not self._best.best_metric:
      return
    terminal.phase('eval', f'looking for {self._best.best_metric!r} in a batch')
    results: dict[str, float] = {}
    for batches in (1, _TRIED):
      results = self._evaluated(state, batches)
      if not results or best.name(self._best) in results:
        return
    best.check(self._best, results)

  def _evaluated(self, state: TrainState, batches: int) -> dict[str, float]:
    """Metrics of all sets; {} where it was asked to stop."""
    results: dict[str, float] = {}
    weights = self._experiment.weights(state.params, state.extras)
    most = self._config.max_written
    one = 1 if most is None else min(1, most)
    for name in self._experiment.eval_data:
      found = self._evaluation(weights, name, batches, one)
      if found is None:
        return {}
      results |= self._named(name, found.metrics)
    return results

  def _evaluation(
    self, weights: Any, name: str, batches: int | None, written: int | None
  ) -> Evaluation | None:
    with terminal.cuts(said=False):  # It was said when the rows were read.
      return evaluate(self._experiment, weights, name, batches, self._asked_to_stop, written)

  def run_missing(self, step: int, state: TrainState) -> None:
    """Does an evaluation that was due at the step of the checkpoint and was cut short."""
    if not self.is_due(step):
      return
    done = {
      line['split']: line
      for line in writers.read_metrics(self._workdir)
      if line['step'] == step and line['split'] in self._experiment.eval_data
    }
    self.run(step, state, done)
    self._checkpoints.add_metrics(step, self.metrics_at(step))

  def run(
    self, step: int, state: TrainState, done: Mapping[str, Mapping[str, Any]] = _NOTHING
  ) -> None:
    """Evaluates on every validation set.

    done: sets that were evaluated at this step before a stop -> their lines of metrics.jsonl.
    """
    results: dict[str, float] = {}
    for name, line in done.items():
      results |= self._named(name, _numbers(line))
    weights = self._experiment.weights(state.params, state.extras)
    for name in [name for name in self._experiment.eval_data if name not in done]:
      terminal.phase('eval', f'{name} at step {step}')
      limit, most = self._config.max_batches, self._config.max_written
      evaluation = self._evaluation(weights, name, limit, most)
      if evaluation is None:
        return
      self._writers.write(step, name, evaluation.metrics)
      shown = list(evaluation.metrics.items())[:_SHOWN]
      terminal.say(f'{name}: ' + '  '.join(f'{key} {value:.4g}' for key, value in shown))
      results |= self._named(name, evaluation.metrics)
    self._last = (step, results)
    self._note_score(step, results)
    if self.is_exhausted():
      terminal.say(
        f'stopping early: no better {best.name(self._best)} in {self._config.patience} evaluations'
      )
    elif step < self._experiment.total_steps:
      terminal.phase('train', f'{self._experiment.total_steps - step} steps to go')

  def metrics_at(self, step: int) -> dict[str, float]:
    """Metrics of all sets at a step, if that was the last evaluation."""
    at, metrics = self._last
    return metrics if step == at else {}

  def is_exhausted(self) -> bool:
    """Whether the last `evaluation.patience` evaluations all were no better than one before."""
    patience = self._config.patience
    scores = [self._scores[step] for step in sorted(self._scores)]
    if not patience or len(scores) <= patience:
      return False
    return max(scores[-patience:]) <= max(scores[:-patience])

  def _named(self, name: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under names of their set; `best_metric` means the first where it names none."""
    first = name == next(iter(self._experiment.eval_data))
    return {key if first else f'{name}/{key}': value for key, value in metrics.items()}

  def _recall_scores(self) -> None:
    """Scores of the evaluations so far, from metrics.jsonl: a resume stops where the run would.

    One that was cut short between two sets may lack the metric, and is not counted.
    """
    results: dict[int, dict[str, float]] = {}
    for line in writers.read_metrics(self._workdir):
      if line['split'] in self._experiment.eval_data:
        found = results.setdefault(line['step'], {})
        found |= self._named(line['split'], _numbers(line))
    for step, found in results.items():
      if best.name(self._best) in found:
        self._note_score(step, found)

  def _note_score(self, step: int, results: Mapping[str, float]) -> None:
    score = best.score(self._best, results)
    self._scores[step] = -np.inf if score is None else score


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
  """The metrics of a line of metrics.jsonl, which has null for what is not finite."""
  found = {key: value for key, value in line.items() if key not in ('step', 'split')}
  return {key: float('nan') if value is None else value for key, value in found.items()}
