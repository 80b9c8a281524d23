"""What a run that goes on must have in common with what it was.

A resume is the same run and takes everything from its checkpoint.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from flaxlm import terminal
from flaxlm.config import overrides
from flaxlm.config.schema import Config
from flaxlm.errors import UserError
from flaxlm.training.optimizer import BENT_BY_TOTAL_STEPS

# How layers are run never changes a checkpoint.
RUN_ONLY = ('model.attention_kernel', 'model.remat', 'model.scan_layers')
# What a resume may change: nothing here alters which numbers the run computes, up to the order of
# floating-point sums over devices and micro-batches, and the draws of dropout, of which each
# micro-batch and under `pmap` each device has its own; but for the guard, whose business bad steps
# are, and the length of the run.
RESUMABLE = (
  'parallelism', 'mesh', 'sharding_rules', 'num_microbatches', 'evaluation', 'checkpoint', 'guard',
  'logging', 'profile', *RUN_ONLY, 'data.prefetch', 'data.num_workers', 'data.cache_dir',
  'total_steps', 'num_epochs',
)  # fmt: skip


def check_config(saved: Config, now: Config, *, complete: bool = True) -> None:
  """Raises UserError, naming the field, if a run that was saved cannot go on with this config.

  complete: whether `now` has what the training rows decide where it is unset (`Task.discover`).
  """
  for key, before, after in overrides.differing_fields(saved, now):
    if any(key == allowed or key.startswith(f'{allowed}.') for allowed in RESUMABLE):
      continue
    if not complete and key.startswith('task.') and after in (None, ()):
      continue
    if key == 'task.labels':
      raise UserError(
        f'config.task.labels: the run in this workdir has {",".join(before)}, and the rows have '
        f'{",".join(after)}; go on with --config.task.labels={",".join(before)}, or start in '
        'another workdir'
      )
    raise UserError(
      f'config.{key}: the run in this workdir has {before!r}, not {after!r}, and a resume cannot '
      'change it; go on without the change, or start in another workdir'
    )


def check_held_out(
  meta: Mapping[str, Any], held_out: Mapping[str, str], workdir: epath.PathLike
) -> None:
  """Raises UserError if what is held out of `data.train` now is not what the run held out."""
  for name, corpus in meta.get('held_out', held_out).items():
    if held_out.get(name, corpus) != corpus:
      raise UserError(
        f'config.data.train: what is held out of it as {name!r} is not what it was when the run in '
        f'{workdir} began, and may have been trained on (the text, or how the program reads it, '
        'has changed); name a set with --config.data.validation'
      )


def check_steps(meta: Mapping[str, Any], config: Config, total_steps: int) -> None:
  """Warns where another number of steps bends the learning-rate schedule."""
  if meta['total_steps'] != total_steps and config.optimizer.schedule in BENT_BY_TOTAL_STEPS:
    terminal.warn(
      f'the {config.optimizer.schedule} schedule was made for {meta["total_steps"]} steps and is '
      f'now bent to {total_steps}: from here on the learning rate is another one'
    )


def check_tokenizer(meta: Mapping[str, Any], fingerprint: str, workdir: epath.PathLike) -> None:
  """Raises UserError if WORKDIR/tokenizer is not the tokenizer that the run was trained with."""
  if meta['tokenizer'] != fingerprint:
    raise UserError(f'{workdir}/tokenizer: not the tokenizer that the checkpoints were made with')
