"""The training loop: where a run starts, what it does at each step, and how it ends."""

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from flaxlm import terminal
from flaxlm.config import tree
from flaxlm.config.schema import Config
from flaxlm.errors import UserError
from flaxlm.evaluation.evaluator import evaluate
from flaxlm.training import checkpoint, restore, writers
from flaxlm.training.clock import Clock
from flaxlm.training.interrupt import Interrupted, Interrupts, name_of
from flaxlm.training.paths import leaf_paths
from flaxlm.training.state import with_params
from flaxlm.types import Mean, TrainState

# Steps in flight. Their metrics are read this late, so that the device never waits for the host.
_LAG = 2
# Metrics of an evaluation that fit on a line; metrics.jsonl has all.
_SHOWN = 6
_NOTHING: Mapping[str, Any] = {}


class NonFinite(UserError):
  """A loss or gradient that is NaN or infinite. Training cannot go on from it."""


def train(config: Config, workdir: str, overrides: Sequence[tuple[str, str]] = ()) -> None:
  """Trains a config in `workdir`, going on from a checkpoint there.

  Args:
    config: the resolved experiment.
    workdir: folder of the run, made if absent.
    overrides: what the user set, for the record.

  Raises:
    UserError: for mistakes in config, data or checkpoints, and for a loss that is not finite.
    Interrupted: after SIGTERM or Ctrl-C; what there was to save is saved.
  """
  from flaxlm.training.experiment import build  # after the first line: it imports every family

  with Interrupts() as interrupts:
    saved = _saved_config(epath.Path(workdir) / 'checkpoints')
    if saved is not None:
      restore.check_resume(saved, config)  # before the data are prepared, which may take long
    terminal.phase('data', config.data.train)
    experiment = build(config, workdir)
    fit(experiment, workdir, overrides, interrupts)


def _saved_config(directory: epath.Path) -> Config | None:
  """The config of the newest checkpoint whose description is intact."""
  for step in reversed(checkpoint.steps_in(directory)):
    try:
      return tree.from_dict(checkpoint.read_meta(directory, step)['config'])
    except checkpoint.Damaged:
      continue  # reported when it is restored
  return None


def fit(
  experiment: Any,
  workdir: epath.PathLike,
  overrides: Sequence[tuple[str, str]] = (),
  interrupts: Interrupts | None = None,
) -> TrainState:
  """Trains an experiment to its last step; see `train`. Returns the final state."""
  workdir = epath.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  interrupts = interrupts or Interrupts()
  state, step = start(experiment, workdir)
  trained, total = experiment.partition.count(experiment.abstract_state.params)
  terminal.say(f'{trained:,} of {total:,} parameters train')
  _describe(experiment, workdir, overrides)
  run = _Run(experiment, workdir, step, interrupts)
  batches = experiment.train_data.iterate(step)
  try:
    run.check_best_metric(state)
    run.evaluate_missing(state)
    interrupts.begin_training()
    if run.goes_on(step):
      terminal.phase('compile', f'step {step + 1} of {run.total}')
    while run.goes_on(step):
      if interrupts.signum is not None:
        run.stop(state)
      run.profile(state)
      batch = experiment.put(next(batches))
      state, metrics = experiment.train_step(state, batch)
      step += 1
      run.step_done(step, metrics)
      if run.evaluation_is_due(step):
        run.evaluate(state)
      if run.save_is_due(step):
        run.save(state)
    if interrupts.signum is not None:
      run.stop(state)
    run.finish(state)
    return state
  finally:
    batches.close()
    run.close()


def start(experiment: Any, workdir: epath.Path) -> tuple[TrainState, int]:
  """The state to train from: the workdir's newest whole checkpoint, `init_from`, or scratch.

  Returns:
    (state, updates done). Metrics beyond the step are dropped from metrics.jsonl.

  Raises:
    UserError: if the checkpoint belongs to another experiment.
  """
  directory = workdir / 'checkpoints'
  config = experiment.config

  def read(step: int, meta: dict[str, Any]) -> TrainState:
    restore.check_resume(tree.from_dict(meta['config']), config)
    restore.check_same_tokenizer(meta, experiment.tokenizer.fingerprint, workdir)
    terminal.phase('init', f'checkpoint {step} of {workdir}')
    return checkpoint.restore_tree(directory, step, experiment.abstract_state, meta)

  found = checkpoint.newest(directory, read)
  if found is not None:
    step, meta, state, damaged = found
    _check_data(experiment, step, meta, workdir)
    restore.check_resumed_steps(meta, config, experiment.total_steps)
    checkpoint.set_aside(directory, damaged)
    writers.drop_after(workdir, step)
    terminal.say(f'going on from step {step}')
    return state, step
  terminal.phase('init', 'parameters')
  state = experiment.init_state()
  if config.init_from:
    params = restore.init_from(experiment, state.params, workdir)
    state = with_params(config, experiment.partition, experiment.abstract_state, state, params)
  writers.drop_after(workdir, -1)  # of a run that was stopped before its first checkpoint
  return state, 0


def _check_data(experiment: Any, step: int, meta: dict[str, Any], workdir: epath.Path) -> None:
  """Raises UserError if the next batch is not what it was when the checkpoint was written.

  Compared by the first host, whose part was hashed, and only on as many hosts as then.
  """
  comparable = jax.process_index() == 0 and meta['processes'] == jax.process_count()
  if step >= experiment.total_steps or not comparable:
    return
  if meta['next_batch'] != _batch_hash(experiment, step):
    raise UserError(
      f'config.data.train: the training data are no longer those of the run in {workdir} (its '
      'files, or how the program reads them, have changed); start in another workdir'
    )


def _batch_hash(experiment: Any, step: int) -> str:
  """A hash of this host's part of a step's batch."""
  found = hashlib.sha256()
  for key, value in sorted(experiment.train_data.batch(step).items()):
    found.update(f'{key} {value.dtype} {value.shape} '.encode() + value.tobytes())
  return found.hexdigest()


def _describe(experiment: Any, workdir: epath.Path, overrides: Sequence[tuple[str, str]]) -> None:
  """Writes what the run is: config.json, overrides.json and tokenizer/."""
  writers.write_json(workdir / 'config.json', tree.to_dict(experiment.config))
  writers.write_json(workdir / 'overrides.json', [list(pair) for pair in overrides])
  experiment.tokenizer.save(workdir / 'tokenizer')


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
  """The metrics of a line of metrics.jsonl, which has null for what is not finite."""
  found = {key: value for key, value in line.items() if key not in ('step', 'split')}
  return {key: float('nan') if value is None else value for key, value in found.items()}


class _Run:
  """What goes on beside the steps: metrics, evaluation, checkpoints, the profile, the end."""

  def __init__(self, experiment: Any, workdir: epath.Path, step: int, interrupts: Interrupts):
    self.experiment, self.config = experiment, experiment.config
    self.total = experiment.total_steps
    if self.config.profile.steps and self.config.profile.steps[0] > self.total:
      raise UserError(
        f'config.profile.steps: the run ends before step {self.config.profile.steps[0]}, after '
        f'{self.total} steps'
      )
    self._workdir, self._interrupts = workdir, interrupts
    self._step = self._first = step
    self._pending: deque[tuple[int, dict[str, Any]]] = deque()
    self._clock = Clock()
    self._validation: tuple[int, dict[str, float]] = (-1, {})
    self._scores: dict[int, float] = {}
    self._tracing = False
    self._checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', self.config.checkpoint)
    self._writers = writers.Writers(workdir, self.config, step + 1)
    self._meta = {
      'config': tree.to_dict(self.config),
      'tokenizer': experiment.tokenizer.fingerprint,
      'total_steps': self.total,
      'processes': jax.process_count(),
    }

    if self.config.evaluation.patience:
      self._recall_scores()

  def goes_on(self, step: int) -> bool:
    """Whether there is another step to do."""
    return step < self.total and not self._is_exhausted()

  # Metrics

  def step_done(self, step: int, metrics: dict[str, Any]) -> None:
    """Takes the metrics of a step that was started; reads those of an older one."""
    self._step = step
    self._pending.append((step, metrics))
    if step == self._first + 1:
      self._drain()
      terminal.phase('train', f'{self.total - self._first} steps')
    while len(self._pending) > _LAG:
      self._read(*self._pending.popleft())

  def _drain(self) -> None:
    while self._pending:
      self._read(*self._pending.popleft())

  def _read(self, step: int, metrics: dict[str, Any]) -> None:
    """Checks that a step was finite, shows it, and writes its line if one is due."""
    leaf_norms = metrics['leaf_norms']
    host = jax.device_get({k: v for k, v in metrics.items() if k != 'leaf_norms'})
    values = {k: v.value() if isinstance(v, Mean) else float(v) for k, v in host.items()}
    if not np.isfinite([values['loss'], values['grad_norm']]).all():
      raise self._non_finite(step, values, np.asarray(leaf_norms))
    self._clock.step(values.pop('tokens'))
    rate, left = self._clock.shown_rate(), self._clock.seconds_left(self.total - step)
    if np.isfinite(rate):  # not before there is something to say
      terminal.step(step, self.total, values['loss'], rate, left)
    if step % self.config.logging.every_steps == 0 or step == self.total:
      learning_rate = float(self.experiment.schedule(step - 1))
      extra = {'learning_rate': learning_rate, 'tokens_per_second': self._clock.take_rate()}
      self._writers.write(step, 'train', values | extra)

  def _non_finite(self, step: int, values: dict[str, float], norms: np.ndarray) -> NonFinite:
    params = self.experiment.abstract_state.params
    paths = list(leaf_paths(jax.eval_shape(self.experiment.partition.take, params)))
    bad = [path for path, norm in zip(paths, norms, strict=True) if not np.isfinite(norm)]
    where = f'; not finite: the gradient of {bad[0]}' if bad else ''
    where += f' and {len(bad) - 1} more of {len(paths)} leaves' if len(bad) > 1 else ''
    return NonFinite(
      f'step {step}: loss {values["loss"]}, gradient norm {values["grad_norm"]}{where}; '
      f'batch: {self.experiment.train_data.describe(step - 1)}; nothing was saved after it'
    )

  # Evaluation

  def evaluation_is_due(self, step: int) -> bool:
    every = self.config.evaluation.every_steps
    return step == self.total or bool(every and step and step % every == 0)

  def check_best_metric(self, state: TrainState) -> None:
    """Raises UserError if there is no metric `best_metric`, from a batch instead of after hours."""
    if not self.config.checkpoint.best_metric:
      return
    terminal.phase('eval', f'looking for {self.config.checkpoint.best_metric!r} in one batch')
    results: dict[str, float] = {}
    weights = self.experiment.weights(state.params, state.extras)
    most = self.config.evaluation.max_written
    for name in self.experiment.eval_data:
      stop = lambda: self._interrupts.signum
      one = 1 if most is None else min(1, most)
      evaluation = evaluate(self.experiment, weights, name, 1, stop, one)
      if evaluation is None:
        return
      results |= self._named(name, evaluation.metrics)
    self._checkpoints.score(results)

  def evaluate_missing(self, state: TrainState) -> None:
    """Does an evaluation that was due at the step of the checkpoint and was cut short."""
    if not self.evaluation_is_due(self._step):
      return
    done = {
      line['split']: line
      for line in writers.read_metrics(self._workdir)
      if line['step'] == self._step and line['split'] in self.experiment.eval_data
    }
    self.evaluate(state, done)

  def evaluate(self, state: TrainState, done: Mapping[str, Mapping[str, Any]] = _NOTHING) -> None:
    """Evaluates on every validation set; gives up, without a trace, when asked to stop.

    done: sets that were evaluated at this step before a stop -> their lines of metrics.jsonl.
    """
    self._drain()
    self._clock.pause()
    results: dict[str, float] = {}
    for name, line in done.items():
      results |= self._named(name, _numbers(line))
    weights = self.experiment.weights(state.params, state.extras)
    for name in [name for name in self.experiment.eval_data if name not in done]:
      terminal.phase('eval', f'{name} at step {self._step}')
      limit = self.config.evaluation.max_batches
      stop = lambda: self._interrupts.signum
      most = self.config.evaluation.max_written
      evaluation = evaluate(self.experiment, weights, name, limit, stop, most)
      if evaluation is None:
        return
      self._writers.write(self._step, name, evaluation.metrics)
      shown = list(evaluation.metrics.items())[:_SHOWN]
      terminal.say(f'{name}: ' + '  '.join(f'{key} {value:.4g}' for key, value in shown))
      results |= self._named(name, evaluation.metrics)
    self._validation = (self._step, results)
    self._note_score(self._step, results)
    if self._is_exhausted():
      terminal.say(
        f'stopping early: no better {self.config.checkpoint.best_metric or "loss"} in '
        f'{self.config.evaluation.patience} evaluations'
      )
    elif self._step < self.total:
      terminal.phase('train', f'{self.total - self._step} steps to go')

  def _named(self, name: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under names of their set; `best_metric` means the first where it names none."""
    first = name == next(iter(self.experiment.eval_data))
    return {key if first else f'{name}/{key}': value for key, value in metrics.items()}

  # Early stopping

  def _recall_scores(self) -> None:
    """Scores of the evaluations so far, from metrics.jsonl: a resume stops where the run would."""
    results: dict[int, dict[str, float]] = {}
    for line in writers.read_metrics(self._workdir):
      if line['split'] in self.experiment.eval_data:
        found = results.setdefault(line['step'], {})
        found |= self._named(line['split'], _numbers(line))
    for step, found in results.items():
      self._note_score(step, found)

  def _note_score(self, step: int, results: Mapping[str, float]) -> None:
    score = self._checkpoints.score(results)
    self._scores[step] = -np.inf if score is None else score

  def _is_exhausted(self) -> bool:
    """Whether the last `evaluation.patience` evaluations all were no better than one before."""
    patience = self.config.evaluation.patience
    scores = [self._scores[step] for step in sorted(self._scores)]
    if not patience or len(scores) <= patience:
      return False
    return max(scores[-patience:]) <= max(scores[:-patience])

  # Checkpoints

  def _metrics_now(self) -> dict[str, float]:
    step, metrics = self._validation
    return metrics if step == self._step else {}

  def save_is_due(self, step: int) -> bool:
    """At the interval, at the end, and after an evaluation that is the best so far."""
    due = not self.goes_on(step) or step % self.config.checkpoint.every_steps == 0
    return due or self._checkpoints.is_best(self._metrics_now())

  def save(self, state: TrainState) -> None:
    """Starts a save of a state that is known to be finite, unless this step has one."""
    self._drain()
    if self._checkpoints.saved(self._step):
      return
    self._writers.flush()
    meta = self._meta | {'next_batch': _batch_hash(self.experiment, self._step)}
    self._checkpoints.save(self._step, state, meta, self._metrics_now())
    self._clock.pause()

  # The end

  def stop(self, state: TrainState) -> None:
    """Saves and raises Interrupted."""
    self._stop_profile(state)
    terminal.phase('save', f'step {self._step}')
    self.save(state)
    self._checkpoints.wait()
    signum = self._interrupts.signum
    name = name_of(signum)
    terminal.say(f'stopped by {name} at step {self._step}; the same command goes on')
    raise Interrupted(signum)

  def finish(self, state: TrainState) -> None:
    """Completes what is in flight after the last step."""
    self._stop_profile(state)
    terminal.phase('save', f'step {self._step}')
    self.save(state)
    self._checkpoints.wait()
    terminal.say(f'done at step {self._step}: {self._workdir}')

  def close(self) -> None:
    self._writers.close()
    self._checkpoints.close()

  # Profile

  def profile(self, state: TrainState) -> None:
    """Starts or ends the trace of `config.profile.steps`; called before each step."""
    if not self.config.profile.steps:
      return
    first, last = self.config.profile.steps
    if self._step + 1 == first:
      jax.block_until_ready(state)
      jax.profiler.start_trace(str(self._workdir / 'profile'))
      self._tracing = True
    elif self._step == last:
      self._stop_profile(state)

  def _stop_profile(self, state: TrainState) -> None:
    if self._tracing:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      self._tracing = False
      terminal.say(f'profile of steps {self.config.profile.steps} in {self._workdir}/profile')
