"""What eval.py and `predict` may change in the config of a run."""

import dataclasses
from collections.abc import Sequence

from flaxlm.config import overrides as config_overrides
from flaxlm.config import tree
from flaxlm.config.schema import Config
from flaxlm.errors import UserError

# How rows are read, and what of an answer depends on the predictions alone.
READING = (
  *('data.text_column', 'data.label_column'),
  *('task.pair_column', 'task.target_column', 'task.choice_columns'),
  *('task.unanswerable', 'task.null_threshold', 'task.threshold'),
)
# A name that ends in a dot stands for all below it.
EVALUATION = (
  *('evaluation.', 'data.validation', 'data.test', 'data.on_bad_row'),
  *READING,
  *('task.bleu_tokenizer', 'task.lead_sentences'),
)
# Of evaluations in training alone: eval.py reads every set whole, once.
_IN_TRAINING = tuple(
  f'evaluation.{name}' for name in ('every_steps', 'patience', 'max_batches', 'max_written')
)


def changed(
  saved: Config, overrides: Sequence[tuple[str, str]], allowed: Sequence[str], command: str
) -> Config:
  """The run's config with overrides of the `allowed` fields.

  Raises UserError, naming the command, for another field, and for one that would do nothing.
  """
  for key, _ in overrides:
    if not any(key == name or (name[-1] == '.' and key.startswith(name)) for name in allowed):
      names = ', '.join(name + '*' * name.endswith('.') for name in allowed)
      raise UserError(
        f'config.{key}: {command} takes the config of the run, and only {names} can be set'
      )
    if key in _IN_TRAINING:
      raise UserError(f'config.{key}: would do nothing: {command} reads every set whole, once')
  config_dict = tree.to_config_dict(saved)
  config_overrides.apply(config_dict, overrides)
  found = tree.from_config_dict(config_dict)
  # All else stays that of the run: a ConfigDict lacks what the training rows have decided.
  names = [key.removeprefix('task.') for key, _ in overrides if key.startswith('task.')]
  task = dataclasses.replace(saved.task, **{name: getattr(found.task, name) for name in names})
  return dataclasses.replace(saved, data=found.data, evaluation=found.evaluation, task=task)
