"""Where a run starts: its workdir's newest whole checkpoint, other weights, or scratch."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from flaxlm import distributed, terminal
from flaxlm.config import tree
from flaxlm.config.schema import Config
from flaxlm.data import source
from flaxlm.errors import UserError
from flaxlm.training import checkpoint, restore, resume, writers
from flaxlm.training.detours import Detours, as_declared, as_stored
from flaxlm.training.state import with_params
from flaxlm.types import TrainState

if TYPE_CHECKING:
  from flaxlm.training.experiment import Experiment


def saved_config(directory: epath.Path) -> Config | None:
  """The config of the newest checkpoint whose description is intact."""
  for step in reversed(checkpoint.steps_in(directory)):
    try:
      return tree.from_dict(checkpoint.read_meta(directory, step)['config'])
    except checkpoint.Damaged:
      continue  # reported when it is restored
  return None


def start(experiment: 'Experiment', workdir: epath.Path) -> tuple[TrainState, int, Detours]:
  """The state to train from: the workdir's newest whole checkpoint, `init_from`, or scratch.

  Returns:
    (state, steps done, detours on the way). Metrics beyond the step are dropped from metrics.jsonl.

  Raises:
    UserError: if the checkpoint belongs to another experiment.
  """
  directory = workdir / 'checkpoints'
  config = experiment.config

  def read(step: int, meta: dict[str, Any]) -> TrainState:
    resume.check_config(tree.from_dict(meta['config']), config)
    resume.check_tokenizer(meta, experiment.tokenizer.fingerprint, workdir)
    terminal.phase('init', f'checkpoint {step} of {workdir}')
    abstract = experiment.abstract_state
    state = checkpoint.restore_tree(directory, step, as_stored(abstract, meta), meta)
    return as_declared(state, abstract, Detours.of(meta))

  found = checkpoint.newest(directory, read)
  if found is not None:
    step, meta, state, damaged = found
    _check_data(experiment, step, meta, workdir)
    resume.check_steps(meta, config, experiment.total_steps)
    distributed.by_first(lambda: _clear(directory, damaged, workdir, step))
    terminal.say(f'going on from step {step}')
    return state, step, Detours.of(meta)
  if config.data.test:  # Only the evaluation after the run reads it.
    source.check(config.data.test, 'config.data.test')
  terminal.phase('init', 'parameters')
  state = experiment.init_state()
  if config.init_from:
    params = restore.init_from(experiment, state.params, workdir)
    state = with_params(config, experiment.partition, experiment.abstract_state, state, params)
  # Those of a run that was stopped before its first checkpoint.
  distributed.by_first(lambda: writers.drop_after(workdir, -1))
  return state, 0, Detours()


def _clear(directory: epath.Path, damaged: list[int], workdir: epath.Path, step: int) -> None:
  """Takes away what a run left behind after `step`."""
  checkpoint.set_aside(directory, damaged)
  writers.drop_after(workdir, step)


def _check_data(
  experiment: 'Experiment', step: int, meta: dict[str, Any], workdir: epath.Path
) -> None:
  """Raises UserError if text, rows or next batch are not what they were at the checkpoint."""
  if step >= experiment.total_steps:
    return
  now = experiment.train_data.corpus
  if meta.get('corpus', now) != now or meta['next_batch'] != data_hash(
    experiment, step + Detours.of(meta).data_offset
  ):
    raise UserError(
      f'config.data.train: the training data are no longer those of the run in {workdir} (its '
      'files, or how the program reads them, have changed); start in another workdir'
    )
  resume.check_held_out(meta, experiment.held_out, workdir)


def data_hash(experiment: 'Experiment', number: int) -> str:
  """A hash of the first rows of a global batch, the same on any number of hosts."""
  found = hashlib.sha256()
  for key, value in sorted(experiment.train_data.first_rows(number).items()):
    found.update(f'{key} {value.dtype} {value.shape} '.encode() + value.tobytes())
  return found.hexdigest()


def describe(
  experiment: 'Experiment', workdir: epath.Path, overrides: Sequence[tuple[str, str]]
) -> None:
  """Writes what the run is: config.json, overrides.json and tokenizer/; by one process."""
  if not distributed.is_first():
    return
  writers.write_json(workdir / 'config.json', tree.to_dict(experiment.config))
  writers.write_json(workdir / 'overrides.json', [list(pair) for pair in overrides])
  # That of checkpoints stays untouched: cut short while it is written, it would open none of them.
  if not checkpoint.steps_in(workdir / 'checkpoints'):
    experiment.tokenizer.save(workdir / 'tokenizer')
