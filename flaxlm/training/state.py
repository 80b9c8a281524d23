"""The state a run starts from: parameters, the optimizer's part, and where each leaf lies."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flaxlm import sharding
from flaxlm.config.schema import Config
from flaxlm.data import packing
from flaxlm.models.model import Model
from flaxlm.objectives.base import Objective
from flaxlm.paths import leaf_paths, path_name
from flaxlm.training import guard, lora
from flaxlm.training.partition import Partition
from flaxlm.types import EMA, GUARD, MEMORY, TrainState

_DELTAS = 2**31 - 1  # Keeps the random numbers of LoRA apart from those of the model.


def init_params(config: Config, model: Model, objective: Objective, key: jax.Array) -> Any:
  """Parameters, boxed with their logical axes."""
  batch = jax.tree.map(jnp.asarray, packing.pack_rows([[]], objective.streams))
  params = model.init(key, batch)['params']
  return lora.add_deltas(config.tuning, params, jax.random.fold_in(key, _DELTAS))


def init_extras(config: Config, trained: Any) -> dict[str, Any]:
  """What a run keeps beside parameters and moments: the moving average begins at the start."""
  extras: dict[str, Any] = {}
  if config.optimizer.ema_decay:
    extras[EMA] = jax.tree.map(jnp.copy, trained)
  if config.guard.is_on:
    extras[GUARD] = guard.fresh()
  return extras


def with_params(
  config: Config, partition: Partition, abstract: TrainState, state: TrainState, params: Any
) -> TrainState:
  """A fresh state that starts from other parameters; `abstract` says where its leaves lie."""
  extras = {**state.extras, **init_extras(config, partition.take(params))}
  place = lambda leaf, wanted: jax.device_put(leaf, wanted.sharding)
  return state.replace(params=params, extras=jax.tree.map(place, extras, abstract.extras))


def init_state(
  config: Config,
  model: Model,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  partition: Partition,
  params: Any,
) -> TrainState:
  """The state before the first step, of parameters that are boxed with their logical axes."""
  trained = partition.take(nn.unbox(params))
  extras = init_extras(config, trained)
  if objective.recurrent:
    extras[MEMORY] = model.trunk.empty_memory(config.global_batch_size)
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained), extras)


def abstract_state(
  config: Config,
  model: Model,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  partition: Partition,
  params: Any,
  mesh: Mesh,
) -> TrainState:
  """Shapes, dtypes and shardings of the state, from boxed shapes of the parameters.

  Moments lie where their parameters do, a memory where the rows do.
  """
  boxed = jax.eval_shape(
    lambda params: init_state(config, model, objective, optimizer, partition, params), params
  )
  rules = sharding.parse_rules(config.sharding_rules)
  placed = sharding.parameter_shardings(boxed.params, mesh, rules)
  everywhere = sharding.replicated(mesh)
  trained = jax.eval_shape(partition.take, nn.unbox(boxed.params))
  alike = lambda tree: _placed_alike(tree, trained, partition.take(placed), everywhere)
  rows = sharding.batch_sharding(mesh, rules)
  extras = {
    name: jax.tree.map(lambda _: rows, tree) if name == MEMORY else alike(tree)
    for name, tree in boxed.extras.items()
  }
  shardings = TrainState(everywhere, placed, alike(boxed.opt_state), extras)
  place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
  return jax.tree.map(place, nn.unbox(boxed), shardings)


def _placed_alike(tree: Any, trained: Any, shardings: Any, otherwise: Any) -> Any:
  """Shardings of a tree that holds trees of trained parameters below nodes of its own.

  A leaf lies where the parameter does that its path ends with, if it has its shape (moments,
  averages); other leaves (counts, factored moments) lie `otherwise`.
  """
  leaves, places = leaf_paths(trained), leaf_paths(shardings)

  def place(path: Any, leaf: Any) -> Any:
    nodes = path_name(path).split('/')
    ends = ('/'.join(nodes[i:]) for i in range(len(nodes)))
    found = next((end for end in ends if end in leaves), None)
    return places[found] if found and leaves[found].shape == leaf.shape else otherwise

  return jax.tree_util.tree_map_with_path(place, tree)
