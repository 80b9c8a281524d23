"""Evaluation: exact sums over a whole set, the metrics of a task, and predictions."""

import dataclasses
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath

from flaxlm import distributed, files, terminal
from flaxlm.config import recipe
from flaxlm.config.schema import Config
from flaxlm.evaluation import changes, writing
from flaxlm.objectives.base import Objective
from flaxlm.tasks.base import Task
from flaxlm.training import checkpoint, restore
from flaxlm.training.writers import finite, write_json
from flaxlm.types import Mean

if TYPE_CHECKING:
  from flaxlm.training.experiment import Experiment

# Batches in flight: enough to keep the device busy, few enough not to fill its memory.
_AHEAD = 2


@dataclasses.dataclass
class Evaluation:
  """Of one set: metrics by name, and predictions [N, ...] by name, in the order of the examples."""

  metrics: dict[str, float]
  predictions: dict[str, np.ndarray]


def evaluate(
  experiment: 'Experiment',
  params: Any,
  name: str,
  max_batches: int | None = None,
  should_stop: Callable[[], Any] = lambda: None,
  max_written: int | None = None,
) -> Evaluation | None:
  """Evaluates `params` on the set `name` of `experiment.eval_data`.

  Every metric is a sum over all rows divided once, in float64, so that neither the size of the
  batches nor a ragged last one changes it; `loss` is the sum of the objective's terms. Perplexity
  is exp of the loss over tokens, whether all or masked or corrupted ones; where the loss is a
  likelihood of the text, bits_per_byte is the summed loss in bits over the bytes of the text (over
  the share of what is predicted, where `max_batches` leaves rows out, or marks are missing).

  Args:
    experiment: gives the step, the batches, and the task with its examples, if there is one.
    params: as the model takes them.
    name: of the set.
    max_batches: read only the first so many.
    should_stop: polled between batches.
    max_written: of a task that scores written texts, write only the first so many.

  Returns:
    The evaluation, or None if it was stopped.
  """
  data = experiment.eval_data[name]
  totals: dict[str, Mean] = {}
  collected: list[dict[str, np.ndarray]] = []
  count = 0
  with terminal.bar(f'evaluate {name}', _length(data, max_batches), 'batches') as bar:
    for metrics, predictions in _outputs(experiment, params, data, max_batches):
      if should_stop():
        return None
      for key, mean in metrics.items():
        mean = Mean(np.float64(mean.total), np.float64(mean.weight))
        totals[key] = totals[key] + mean if key in totals else mean
      if predictions:
        collected.append(_real(predictions))
      count += 1
      bar.advance()
  result = _metrics(experiment.objective, totals, data, count)
  predictions = _joined(collected)
  if predictions and writing.writes(experiment):
    numbers = range(len(experiment.examples[name]))
    if max_batches is not None:
      numbers = np.unique(predictions['example_ids'])
    numbers = numbers[:max_written]
    texts = writing.write(experiment, params, name, numbers, should_stop)
    if texts is None:
      return None
    predictions |= texts
  if predictions and experiment.task is not None:
    result |= experiment.task.metrics(predictions, experiment.examples[name])
  return Evaluation(result, predictions)


def _metrics(
  objective: Objective, totals: Mapping[str, Mean], data: Any, count: int
) -> dict[str, float]:
  """Metrics of the sums over `count` batches: their means, the loss, and what follows from it."""
  # As in training: the sum of the terms' means, where a term without any target counts as 0.
  terms = [mean for term in objective.terms if (mean := totals[term]).weight]
  result = {'loss': sum(term.value() for term in terms) if terms else math.nan}
  result |= {key: mean.value() for key, mean in sorted(totals.items()) if key != 'loss'}
  if objective.perplexity:
    result['perplexity'] = _exp(totals[objective.perplexity].value())
  if objective.likelihood and data.num_bytes:
    num_bytes = data.num_bytes * data.share(count)
    result['bits_per_byte'] = float(totals['loss'].total) / math.log(2) / num_bytes
  return result


def predictions(experiment: 'Experiment', params: Any, data: Any) -> dict[str, np.ndarray]:
  """What the objective predicts for rows without labels, in the order of the examples."""
  found = [_real(p) for _, p in _outputs(experiment, params, data)]
  return _joined(found)


def _length(data: Any, max_batches: int | None) -> int:
  return len(data) if max_batches is None else min(max_batches, len(data))


def _outputs(
  experiment: 'Experiment', params: Any, data: Any, max_batches: int | None = None
) -> Iterator[tuple[dict[str, Mean], dict[str, np.ndarray]]]:
  """What the step returns for each batch, on the host; the device works ahead."""
  waiting: deque[Any] = deque()
  memory = experiment.empty_memory(data.batch_size)
  for batch in data.batches(max_batches):
    *found, memory = experiment.eval_step(params, experiment.put(batch), memory)
    waiting.append(found)
    if len(waiting) > _AHEAD:
      yield jax.device_get(waiting.popleft())
  while waiting:
    yield jax.device_get(waiting.popleft())


def _exp(value: float) -> float:
  try:
    return math.exp(value)
  except OverflowError:
    return math.inf


def _real(predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Predictions [B, T, ...] -> those [n, ...] of slots whose `weights` are not 0."""
  real = predictions['weights'] > 0
  return {key: value[real] for key, value in predictions.items() if key != 'weights'}


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """All predictions, in the order of their `example_ids`."""
  if not parts:
    return {}
  joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
  order = np.argsort(joined['example_ids'], kind='stable')
  return {key: value[order] for key, value in joined.items()}


def evaluate_workdir(
  workdir: str, which: str | int = 'latest', overrides: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
  """Evaluates a checkpoint of a run on every validation set, and on `data.test` if that is set.

  Everything comes from the workdir: config and tokenizer are those of the run. Writes
  WORKDIR/eval/STEP.json and, of a task, WORKDIR/eval/STEP-SPLIT.jsonl with a prediction a line, and
  the task's own files (a picture, an official format) as WORKDIR/eval/STEP-SPLIT-FILE.

  Args:
    workdir: of the run.
    which: 'latest', 'best', a step, or 'average:N', of which the files are then average-N....;
      'auto': 'best' where there is a test set, which is for the checkpoint that validation chose,
      else 'latest'.
    overrides: (dotted key, text) pairs of what `changes.EVALUATION` names.

  Returns:
    JSON-able: checkpoint (step or average:N), workdir, the overrides if there are any, and the
      metrics of each set under its name.

  Raises:
    UserError: without such a checkpoint, for an override that would change the run or do nothing,
      and where what is held out of data.train is no longer what was.
  """
  from flaxlm.training.experiment import build  # imports every family: only where needed

  def make(saved: Config) -> Any:
    config = changes.changed(saved, overrides, changes.EVALUATION, 'eval.py')
    terminal.phase('data', f'evaluation sets of {workdir}')
    return build(config, workdir, training=False)

  if which == 'auto':
    which = _chosen(workdir, overrides)
  experiment, params, step = restore.open_run(workdir, which, make)
  result: dict[str, Any] = {'workdir': str(workdir), 'checkpoint': step}
  if overrides:
    result['overrides'] = dict(overrides)
  out = epath.Path(workdir) / 'eval'
  file = str(step).replace(':', '-')
  found = {}
  for name in experiment.eval_data:
    terminal.phase('eval', f'{name} at step {step}')
    evaluation = evaluate(experiment, params, name)
    result[name] = finite(evaluation.metrics)
    if experiment.task is not None and evaluation.predictions:
      examples = experiment.examples[name]
      result[name] = result[name] | experiment.task.details(evaluation.predictions, examples)
      found[name] = evaluation.predictions
    if experiment.config.data.on_bad_row == 'skip':
      result[name]['skipped_rows'] = experiment.skipped.get(name, 0)
  if distributed.is_first():
    write_json(out / f'{file}.json', result)
    for name, predicted in found.items():
      examples = experiment.examples[name]
      _write_predictions(experiment.task, predicted, examples, out, f'{file}-{name}')
  return result


def _write_predictions(
  task: Task, found: Mapping[str, np.ndarray], examples: Any, out: epath.Path, name: str
) -> None:
  """NAME.jsonl with a prediction a line, and the task's own files as NAME-FILE."""
  lines = task.records(found, examples)
  text = ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines)
  files.write_text(out / f'{name}.jsonl', text)
  for ending, content in task.files(found, examples).items():
    (out / f'{name}-{ending}').write_bytes(content)


def _chosen(workdir: str, overrides: Sequence[tuple[str, str]]) -> str:
  """'best' if a test set will be evaluated and validation scored a checkpoint, else 'latest'."""
  test = dict(overrides).get('data.test', recipe.saved(workdir).data.test)
  return checkpoint.best_or_latest(epath.Path(workdir) / 'checkpoints') if test else 'latest'
