"""An experiment of shapes alone: no text is read, no tokenizer trained, no array made."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from flaxlm.config.data import TokenizerConfig
from flaxlm.config.schema import Config
from flaxlm.data import packing
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError
from flaxlm.training.experiment import Experiment, build
from flaxlm.training.inputs import task_of

# Classes of a task whose labels only its rows tell.
ASSUMED_LABELS = ('first', 'second')


def experiment(
  config: Config, vocab_size: int | None = None, devices: Sequence[jax.Device] | None = None
) -> Experiment:
  """What train.py would build for the devices, which may be those of a topology.

  Raises UserError for what `build` does not accept, and for a vocabulary whose size only the text
  tells.
  """
  config = dataclasses.replace(config, task=_labelled(config))
  stand_in = tokenizer(config.tokenizer, vocab_size)
  return build(config, '', with_data=False, devices=devices, tokenizer=stand_in)


def batch(built: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and places of the global batch of a step."""
  row = packing.pack_rows([[]], built.objective.streams)
  rows, placed = built.config.global_batch_size, built.batch_sharding
  return {
    key: jax.ShapeDtypeStruct((rows, *value.shape[1:]), value.dtype, sharding=placed)
    for key, value in row.items()
  }


def tokenizer(options: TokenizerConfig, vocab_size: int | None = None) -> Tokenizer:
  """What objectives ask for special tokens and a size: that of `path`, or else a stand-in."""
  if options.path and vocab_size is None:
    return Tokenizer.load(options.path, options.add, options.sentinels)
  if options.name == 'characters' and not options.path and vocab_size is None:
    raise UserError(
      'config.tokenizer.name: how many characters a text has only the text tells; '
      '--vocab-size=N says it'
    )
  if vocab_size is None and options.name != 'bytes':
    vocab_size = options.vocab_size
  return StandIn(options.sentinels, vocab_size)


class StandIn(Tokenizer):
  """Special tokens, and pieces without a text: `vocab_size` of them, or those of bytes."""

  def __init__(self, sentinels: int, vocab_size: int | None):
    super().__init__({'name': 'bytes', 'sentinels': sentinels})
    special = len(self.special_ids)
    if vocab_size is not None and vocab_size <= special:
      raise UserError(f'--vocab-size: {vocab_size} pieces, of which {special} are special tokens')
    self.vocab_size = vocab_size or self.vocab_size

  def decode(self, ids: Iterable[int], keep_special: bool = False) -> str:
    return ''


def _labelled(config: Config) -> Any:
  """The task's config with labels: its own, those it knows by itself, or ASSUMED_LABELS."""
  if not config.task.name or getattr(config.task, 'labels', True):
    return config.task
  try:
    return dataclasses.replace(config.task, **task_of(config).discover([]))
  except UserError:  # It finds them in rows.
    return dataclasses.replace(config.task, labels=ASSUMED_LABELS)
