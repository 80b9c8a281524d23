"""From a config to everything that train.py, eval.py and the commands run on."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh, NamedSharding

from flaxlm import sharding
from flaxlm.config import recipe
from flaxlm.config.schema import Config
from flaxlm.data import pipeline
from flaxlm.data.bad_rows import BadRows
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError
from flaxlm.models.model import Model, make_model
from flaxlm.objectives.base import Objective
from flaxlm.tasks.base import Task
from flaxlm.training import checks, compiler, execution, inputs, lora, restore, weights
from flaxlm.training.layout import make_layout
from flaxlm.training.optimizer import make_optimizer
from flaxlm.training.partition import Partition, make_partition
from flaxlm.training.state import abstract_state, init_params, init_state
from flaxlm.training.step import make_eval_step, make_train_step
from flaxlm.types import DELTA, EMA, Batch, TrainState


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A resolved config and what was built from it. Arrays exist only once a state is made.

  skipped: set -> labelled rows that could not be used and were left out.
  """

  config: Config
  tokenizer: Tokenizer
  objective: Objective
  model: Model
  mesh: Mesh
  total_steps: int
  optimizer: optax.GradientTransformation
  schedule: Callable[[Any], Any]
  partition: Partition
  abstract_state: TrainState
  train_data: pipeline.Pipeline | None
  eval_data: Mapping[str, pipeline.EvalPipeline]
  task: Task | None
  examples: inputs.Examples
  skipped: Mapping[str, int]

  @property
  def held_out(self) -> dict[str, str]:
    """Evaluation set -> hash of its text or rows, of those that are a part of `data.train`."""
    if self.config.data.validation:
      return {}
    return {
      name: data.store.digest() if data.store else inputs.rows_digest(self.examples[name])
      for name, data in self.eval_data.items()
      if name != 'test'
    }

  @property
  def batch_sharding(self) -> NamedSharding:
    rules = sharding.parse_rules(self.config.sharding_rules)
    return sharding.batch_sharding(self.mesh, rules)

  def put(self, batch: Mapping[str, np.ndarray]) -> Batch:
    """A batch [B, ...] on the devices, its rows spread over them; of this process's part of it."""
    return sharding.place_rows(batch, self.batch_sharding)

  @functools.cached_property
  def init(self) -> Callable[[jax.Array], TrainState]:
    """key -> fresh state, compiled; each leaf is made on the device that keeps it."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
    return jax.jit(
      lambda key: nn.unbox(
        init_state(
          self.config,
          self.model,
          self.objective,
          self.optimizer,
          self.partition,
          init_params(self.config, self.model, self.objective, key),
        )
      ),
      out_shardings=shardings,
      compiler_options=compiler.once_options(),
    )

  def init_state(self) -> TrainState:
    """The state before the first step, from config.seed."""
    return self.init(jax.random.key(self.config.seed))

  @functools.cached_property
  def train_step(self) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """(state, batch) -> (state, metrics), compiled; the state that goes in is used up."""
    mapped = self.config.parallelism == 'pmap'
    step = make_train_step(
      self.model,
      self.objective,
      self.optimizer,
      seed=self.config.seed,
      num_microbatches=self.config.num_microbatches,
      axis_name=execution.AXIS if mapped else None,
      partition=self.partition,
      weights_of=functools.partial(lora.merge, self.config.tuning),
      ema_decay=self.config.optimizer.ema_decay,
      r_drop=self.config.tuning.r_drop,
      guard=self.config.guard,
    )
    if mapped:
      return execution.Mapped(step, self.batch_sharding)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
    return self._jitted(
      step,
      in_shardings=(shardings, self.batch_sharding),
      out_shardings=(shardings, sharding.replicated(self.mesh)),
      donate_argnums=0,
    )

  def _jitted(self, step: Callable, **options: Any) -> Any:
    rules = sharding.parse_rules(self.config.sharding_rules)
    return execution.jitted(step, self.mesh, rules, **options)

  @property
  def stored_parts(self) -> dict[str, Any]:
    """Shapes and shardings of what `weights` needs of a checkpoint: its keyword arguments."""
    state = self.abstract_state
    return weights.stored_parts(self.config, state.params, state.extras.get(EMA))

  @property
  def abstract_weights(self) -> Any:
    """Shapes and shardings of {'trunk', 'head'}, which is what the model takes."""
    params = self.abstract_state.params
    return {name: node for name, node in params.items() if name != DELTA}

  def weights(self, params: Any, extras: Mapping[str, Any] | None = None) -> Any:
    """What is evaluated, decoded and exported: averaged where that is asked for, LoRA merged."""
    if not weights.is_averaged(self.config) and DELTA not in params:
      return params
    return self._weights(params, extras)

  @functools.cached_property
  def _weights(self) -> Callable[[Any, Any], Any]:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_weights)
    return jax.jit(functools.partial(weights.evaluated, self.config), out_shardings=shardings)

  @functools.cached_property
  def eval_step(self) -> Callable[[Any, Batch, Any], tuple[dict[str, Any], dict[str, Any], Any]]:
    """(weights, batch, memory) -> (Means by name, predictions by name, memory), compiled."""
    everywhere = sharding.replicated(self.mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_weights)
    return self._jitted(
      make_eval_step(self.model, self.objective),
      in_shardings=(shardings, self.batch_sharding, self.batch_sharding),
      out_shardings=(everywhere, everywhere, self.batch_sharding),
    )

  def empty_memory(self, rows: int) -> Any:
    """What `eval_step` takes with a first batch of so many rows: None if nothing is remembered."""
    if not self.objective.recurrent:
      return None
    make = functools.partial(self.model.trunk.empty_memory, rows)
    return jax.jit(make, out_shardings=self.batch_sharding)()


def build(
  config: Config,
  workdir: str | epath.PathLike,
  *,
  training: bool = True,
  with_data: bool = True,
  devices: Sequence[jax.Device] | None = None,
  tokenizer: Tokenizer | None = None,
) -> Experiment:
  """Builds an experiment.

  Args:
    config: resolved, but for what only the data tell (vocabulary, labels): the experiment's own
      config has these filled in.
    workdir: a run that has checkpoints gives its tokenizer; otherwise it is made from the config.
    training: with training batches; without, `data.test` is among the evaluation sets, and the mesh
      is that of the run or what this machine can have instead (`checks.evaluation_mesh`).
    with_data: False makes neither training batches nor evaluation sets, for decoding.
    devices: to run on, whole; by default all, or those of the mesh of an evaluation.
    tokenizer: to take instead of the run's, where nothing may be read (a plan).

  Raises:
    UserError: for data that cannot be read and for parts that do not go together.
  """
  checks.check_parts(config)
  stands_in = tokenizer is not None  # A plan's: it cannot encode.
  tokenizer = tokenizer or inputs.open_tokenizer(config, epath.Path(workdir))
  config, examples = _complete(config, tokenizer), {}
  bad = BadRows(config.data.on_bad_row)
  if config.task.name and with_data:
    config, examples = inputs.read_examples(config, training, bad)
  task = inputs.task_of(config)
  objective = _objective(config, tokenizer)
  if not stands_in and objective.prompts:
    task.read_back(lambda text: tokenizer.decode(tokenizer.encode(text)))
  model = make_model(config.model, objective.head(config.model))
  boxed = jax.eval_shape(lambda key: init_params(config, model, objective, key), jax.random.key(0))
  mesh = _mesh(config, boxed, training, devices)
  train_data, eval_data = None, {}
  if with_data:
    rules = sharding.parse_rules(config.sharding_rules)
    parts = sharding.host_parts(sharding.batch_sharding(mesh, rules))
    train_data, eval_data = inputs.make_data(
      config, tokenizer, objective, examples, parts, training
    )
  total_steps = _total_steps(config, train_data)
  if config.tuning.r_drop:
    checks.check_r_drop(config, objective)
  partition = make_partition(config.tuning, nn.unbox(boxed))
  every = _unfreeze_every(config, train_data)
  optimizer, schedule = _optimizer(config, boxed, partition, total_steps, every, training)
  return Experiment(
    config=config,
    tokenizer=tokenizer,
    objective=objective,
    model=model,
    mesh=mesh,
    total_steps=total_steps,
    optimizer=optimizer,
    schedule=schedule,
    partition=partition,
    abstract_state=abstract_state(config, model, objective, optimizer, partition, boxed, mesh),
    train_data=train_data,
    eval_data=eval_data,
    task=task,
    examples=examples,
    skipped=bad.counts,
  )


def _mesh(config: Config, boxed: Any, training: bool, devices: Sequence[jax.Device] | None) -> Mesh:
  """The devices of `build`, if the run's batches can be divided over them."""
  if training or devices:
    mesh = sharding.make_mesh(config.mesh, devices)
  else:
    mesh = checks.evaluation_mesh(config, boxed)
  execution.check_mesh(config.parallelism, mesh)
  checks.check_batches(config, mesh, sharding.parse_rules(config.sharding_rules), training)
  return mesh


def _optimizer(
  config: Config,
  boxed: Any,
  partition: Partition,
  total_steps: int,
  unfreeze_every: int,
  training: bool,
) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
  """The transformation and the schedule of a run of `total_steps`."""
  layout = make_layout(boxed)
  if unfreeze_every and training:
    trained = jax.eval_shape(partition.take, nn.unbox(boxed))
    checks.check_unfreezing(unfreeze_every, total_steps, layout.distances, trained)
  return make_optimizer(
    config.optimizer,
    total_steps,
    emb_dim=config.model.emb_dim,
    layout=layout,
    tuning=config.tuning,
    unfreeze_every=unfreeze_every,
  )


def _complete(config: Config, tokenizer: Tokenizer) -> Config:
  """Fills in what the config leaves to other nodes: vocabulary and precision of the model."""
  model = dataclasses.replace(
    config.model, vocab_size=tokenizer.vocab_size, precision=config.precision
  )
  return dataclasses.replace(config, model=model)


def _objective(config: Config, tokenizer: Tokenizer) -> Objective:
  """The objective, if its rows fit the trunk and it keeps the memory that the trunk has."""
  objective = checks.objective_class(config)(config, tokenizer)
  remembers = getattr(config.model, 'memory_length', 0) and not config.task.name
  if remembers and not objective.recurrent:
    raise UserError(
      f'config.model.memory_length: would do nothing: {config.objective.name!r} keeps no memory of '
      'the row before; set it to 0'
    )
  longest = objective.longest or max(
    stream.capacity for stream in objective.streams.values() if stream.prefix is not None
  )
  if config.model.position == 'learned' and longest > config.model.max_length:
    raise UserError(
      f'config.data.max_length: rows of {longest} tokens need as many learned positions, '
      f'config.model.max_length is {config.model.max_length}'
    )
  return objective


def _total_steps(config: Config, train_data: pipeline.Pipeline | None) -> int:
  if config.total_steps is not None:
    return config.total_steps
  if train_data is None:
    return 1  # unused without training
  return max(1, math.ceil(config.num_epochs * train_data.steps_per_epoch))


def _unfreeze_every(config: Config, train_data: pipeline.Pipeline | None) -> int:
  """Updates from which on one more layer moves; 0: all do from the start."""
  if not config.tuning.unfreeze_epochs or train_data is None:
    return config.tuning.unfreeze_steps
  return math.ceil(config.tuning.unfreeze_epochs * train_data.steps_per_epoch)


def open_model(
  workdir: str, which: str, change: Callable[[Config], Config] = lambda config: config
) -> tuple[Experiment, Any, int]:
  """(experiment without data, parameters, step) of a run, its config changed, for decoding."""
  recipe.check_workdir(workdir)
  make = lambda config: build(change(config), workdir, training=False, with_data=False)
  return restore.open_run(workdir, which, make)
