"""Whether the parts of an experiment go together. Each check names the field that does not."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from flaxlm import distributed, sharding, terminal
from flaxlm.config import tree
from flaxlm.config.optimization import OptimizerConfig
from flaxlm.config.schema import Config
from flaxlm.errors import UserError, nearest
from flaxlm.models import family
from flaxlm.objectives.base import Objective
from flaxlm.paths import all_virtual_paths
from flaxlm.tasks.base import Task

if TYPE_CHECKING:
  from flaxlm.training.experiment import Experiment


def objective_class(config: Config) -> type[Objective]:
  """The class `Objective` of the file that `config.objective.name` names."""
  return tree.load_class('flaxlm.objectives', config.objective.name, Objective)


def check_parts(config: Config) -> None:
  """Raises UserError if model, objective and task do not go together, before data are read."""
  cls, name = objective_class(config), config.objective.name
  family.check(config.model.name, cls.families, f'config.objective.name: {name!r}')
  labelled = cls.packing == 'first_fit'
  if labelled != bool(config.task.name):
    names = tree.named_files('flaxlm.tasks')
    wanted = f'a task{nearest("", names)}' if labelled else 'running text, without a task'
    raise UserError(f'config.task.name: {config.objective.name!r} learns from {wanted}')
  if labelled:
    task = tree.load_class('flaxlm.tasks', config.task.name, Task)
    missing = [key for key in cls.needs if key not in task.gives]
    if missing:
      raise UserError(
        f'config.task.name: {config.objective.name!r} learns from the {missing[0]} of a row, which '
        f'{config.task.name!r} does not give'
      )


def check_batches(
  config: Config, mesh: Mesh, rules: Mapping[str, tuple[str, ...]], training: bool
) -> None:
  """Raises UserError if the rows of a batch, to train on or to evaluate, do not divide over the
  devices."""
  if training:
    rows = config.global_batch_size // config.num_microbatches
    key = 'config.global_batch_size'
    if config.num_microbatches > 1:
      key += f' over num_microbatches={config.num_microbatches}'
    sharding.check_batch(mesh, rules, rows, key)
  sharding.check_batch(mesh, rules, config.evaluation_rows, 'config.evaluation.batch_size')


def evaluation_mesh(config: Config, boxed: Any) -> Mesh:
  """The mesh where nothing is trained: that of the run, where this machine can have it.

  A run is evaluated and decoded on other machines than it was trained on. Where its mesh does not
  fit the devices, or rows or parameters do not divide over it, each device has all parameters: as
  many devices take part as divide the rows of a batch, of several processes all.

  Args:
    config: of the run.
    boxed: abstract parameters, boxed with their logical axes.
  """
  rules = sharding.parse_rules(config.sharding_rules)
  try:
    mesh = sharding.make_mesh(config.mesh)
    check_batches(config, mesh, rules, training=False)
    sharding.parameter_shardings(boxed, mesh, rules)
    return mesh
  except UserError:
    pass  # The training run says what is wrong with a mesh; here there is another.
  devices = jax.devices()
  if distributed.count() == 1:
    devices = devices[: math.gcd(config.evaluation_rows, len(devices))]
  if len(devices) > 1 and config.mesh[1:] != (1, 1):
    shape = 'x'.join(map(str, config.mesh))
    terminal.say(f"the run's mesh {shape} does not fit here: every device has all parameters")
  return sharding.make_mesh((-1, 1, 1), devices)


def check_first_batches(experiment: 'Experiment') -> None:
  """Makes the first batch of each set, so that what is wrong with one does not wait for its turn.

  Raises:
    UserError: from an evaluation set too, which would come after hours, and if training learns
      nothing from its first batch.
  """
  for data in experiment.eval_data.values():
    data.batch(0)
  first = experiment.train_data.first_rows(0)  # Of the global batch, whoever makes it.
  if not any(first[key].any() for key in first if key.endswith('segment_ids')):
    raise UserError(
      f'config.data.train: the first {experiment.config.global_batch_size} rows have nothing that '
      f'{experiment.config.objective.name!r} learns from; their texts may be too short for it'
    )


def warn_of_warmup(config: OptimizerConfig, total_steps: int) -> None:
  """Says where a run ends before the rate has risen to what was asked for."""
  if config.warmup_steps > total_steps:
    terminal.warn(
      f'config.optimizer.warmup_steps: {config.warmup_steps} steps of warm-up in a run of '
      f'{total_steps}, whose rate never gets to optimizer.learning_rate'
    )


def check_unfreezing(
  every: int, total_steps: int, distances: Mapping[str, int], trained: Any
) -> None:
  """Checks gradual unfreezing, by which leaves at distance n move after n * every updates.

  Args:
    every: in updates.
    total_steps: of the run.
    distances: virtual path -> distance from the output.
    trained: tree of the leaves that train, or of their shapes.

  Raises UserError where the first updates would change nothing; warns where some never come.
  """
  key = 'config.tuning.unfreeze_steps, unfreeze_epochs'
  begin = {name: distances[name] * every for name in all_virtual_paths(trained)}
  # A model whose head has no parameters of its own begins with its last layer.
  wait = min(begin.values()) - min(distances.values()) * every
  if wait:
    raise UserError(f'{key}: what moves first is frozen, and {wait} updates would change nothing')
  late = [name for name, update in begin.items() if update >= total_steps]
  if late:
    terminal.warn(
      f'{key}: the run ends after {total_steps} updates, before {len(late)} of {len(begin)} leaves '
      f'move, such as {late[0]}'
    )


def check_r_drop(config: Config, objective: Objective) -> None:
  """Raises UserError where R-Drop has no distributions to compare, or they cannot differ."""
  if not objective.divergence:
    raise UserError(
      f'config.tuning.r_drop: {config.objective.name!r} does not predict one distribution a target'
    )
  model = dataclasses.asdict(config.model)
  endings = ('drop_rate', 'dropout_rate')
  if not any(value for name, value in model.items() if name.endswith(endings)):
    raise UserError('config.tuning.r_drop: would do nothing: every dropout rate of the model is 0')
