"""The training loop: what happens, step by step, between a run's start and its end."""

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etils import epath

from flaxlm import distributed, files, terminal
from flaxlm.config.schema import Config
from flaxlm.data import summary
from flaxlm.training import checks, footprint, resume
from flaxlm.training.begin import describe, saved_config, start
from flaxlm.training.detours import RollBack
from flaxlm.training.guard import without_memory
from flaxlm.training.interrupt import Interrupts
from flaxlm.training.run import Run
from flaxlm.types import TrainState

if TYPE_CHECKING:
  from flaxlm.training.experiment import Experiment


def train(config: Config, workdir: str, overrides: Sequence[tuple[str, str]] = ()) -> None:
  """Trains a config in `workdir`, going on from a checkpoint there.

  Args:
    config: the resolved experiment.
    workdir: folder of the run, made if absent.
    overrides: what the user set, for the record.

  Raises:
    UserError: for mistakes in config, data or checkpoints, for a loss that is not finite, and while
      another process trains in the same workdir.
    Interrupted: after SIGTERM or Ctrl-C; what there was to save is saved.
  """
  from flaxlm.training.experiment import build  # after the first line: it imports every family

  held = files.held(workdir) if distributed.is_first() else contextlib.nullcontext()
  with held, Interrupts() as interrupts:
    saved = saved_config(epath.Path(workdir) / 'checkpoints')
    if saved is not None:
      # Before the data are prepared, which may take long; again when they are.
      resume.check_config(saved, config, complete=False)
    terminal.phase('data', config.data.train)
    experiment = build(config, workdir)
    checks.check_first_batches(experiment)
    checks.warn_of_warmup(config.optimizer, experiment.total_steps)
    for line in summary.lines(experiment.train_data, experiment.total_steps):
      terminal.say(line)
    fit(experiment, workdir, overrides, interrupts)


def fit(
  experiment: 'Experiment',
  workdir: epath.PathLike,
  overrides: Sequence[tuple[str, str]] = (),
  interrupts: Interrupts | None = None,
) -> TrainState:
  """Trains an experiment to its last step; see `train`. Returns the final state.

  Where `config.guard` rolls back, what follows a bad step is as after any resume: from the last
  checkpoint, but past the batch.
  """
  workdir = epath.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  interrupts = interrupts or Interrupts()
  trained, total = experiment.partition.count(experiment.abstract_state.params)
  back: RollBack | None = None
  while True:
    state, step, detours = start(experiment, workdir)
    if back is None:
      terminal.say(f'{trained:,} of {total:,} parameters train')
      for line in footprint.report(experiment.abstract_state, experiment.mesh):
        terminal.say(line)
      describe(experiment, workdir, overrides)
    else:
      detours = back.back_at(step)
      state = without_memory(state)
    run = Run(experiment, workdir, step, detours, interrupts)
    try:
      return _train(run, state, step, step + detours.data_offset)
    except RollBack as bad:
      back = bad
    finally:
      run.close(sys.exception())


def _train(run: Run, state: TrainState, step: int, number: int) -> TrainState:
  """Trains to the end: from `state`, after `step` steps, with the batch of this number."""
  experiment = run.experiment
  batches = experiment.train_data.iterate(number)
  try:
    run.validation.check_best_metric(state)
    run.validation.run_missing(step, state)
    run.begin()
    while run.goes_on(step):
      if run.asked_to_stop():
        run.stop(state)
      run.profile.before_step(step + 1, state)
      batch = experiment.put(next(batches))
      state, metrics = experiment.train_step(state, batch)
      step += 1
      run.step_done(step, metrics)
      if run.validation.is_due(step) and not run.asked_to_stop():
        run.evaluate(state)
      if run.save_is_due(step):
        run.save(state)
    if run.asked_to_stop():
      run.stop(state)
    run.finish(state)
    return state
  finally:
    batches.close()
