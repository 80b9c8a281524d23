"""How a pure training step runs on the devices of a mesh: `jit` over all of them, `pmap` on each.

In both modes a state is the same arrays with the same shardings, so that checkpoints, evaluation
and resumes do not know the mode.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from flaxlm import sharding
from flaxlm.errors import UserError
from flaxlm.training import compiler
from flaxlm.types import MEMORY, Batch, TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]
# The name of the mapped axis of devices, over which a step of `pmap` sums.
AXIS = 'devices'


def check_mesh(parallelism: str, mesh: Mesh) -> None:
  """Raises UserError if `pmap`, where each device has all parameters, is to divide them."""
  if parallelism == 'pmap' and sharding.divides_parameters(mesh):
    shape = 'x'.join(str(size) for size in mesh.devices.shape)
    raise UserError(
      f"config.parallelism: 'pmap' copies the parameters to every device, config.mesh={shape} "
      "divides them; set config.mesh=-1,1,1 or config.parallelism='jit'"
    )


def jitted(step: Callable, mesh: Mesh, rules: Mapping[str, tuple[str, ...]], **options: Any) -> Any:
  """A step compiled for the whole mesh. options: of `jax.jit`, its shardings among them."""

  def placed(*args: Any) -> Any:
    with sharding.placed(mesh, rules):
      return step(*args)

  return jax.jit(placed, compiler_options=compiler.step_options(mesh), **options)


class Mapped:
  """The step compiled for one device and run on each; the state that goes in is used up.

  step: made with `axis_name=AXIS`; rows: the sharding of a batch.
  """

  def __init__(self, step: Step, rows: NamedSharding):
    devices = list(rows.mesh.devices.flat)
    parts = len(devices)
    self._rows, self._everywhere = rows, sharding.replicated(rows.mesh)

    def run(state: TrainState, memory: Any, batch: Batch) -> tuple[TrainState, Any, Any]:
      state, metrics = step(_joined(state, memory), batch)
      return *_separated(state), metrics

    self._run = jax.pmap(
      run,
      axis_name=AXIS,
      in_axes=(None, 0, 0),
      out_axes=(None, 0, None),
      axis_size=parts,
      devices=devices,
      donate_argnums=(0, 1),
    )
    cut = lambda x: x.reshape(parts, -1, *x.shape[1:])
    join = lambda x: x.reshape(-1, *x.shape[2:])
    # [B, ...] <-> [devices, B / devices, ...]; no row leaves its device.
    self._cut = jax.jit(lambda tree: jax.tree.map(cut, tree), out_shardings=rows)
    self._join = jax.jit(lambda tree: jax.tree.map(join, tree), out_shardings=rows)

  def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
    state, memory, metrics = self._run(*self._arguments(state, batch))
    if not self._everywhere.is_fully_addressable:
      # pmap gives each process arrays over its own devices.
      copied = lambda leaf: _over_processes(leaf, leaf.shape, self._everywhere)
      each = self._rows.mesh.size
      divided = lambda leaf: _over_processes(leaf, (each, *leaf.shape[1:]), self._rows)
      state, metrics = jax.tree.map(copied, (state, metrics))
      memory = jax.tree.map(divided, memory)
    return _joined(state, self._join(memory)), metrics

  def lower(self, state: TrainState, batch: Batch) -> Any:
    """As of a jitted function, of arrays or abstract arrays."""
    return self._run.lower(*jax.eval_shape(self._arguments, state, batch))

  def _arguments(self, state: TrainState, batch: Batch) -> tuple[TrainState, Any, Batch]:
    state, memory = _separated(state)
    return state, self._cut(memory), self._cut(batch)


def _over_processes(leaf: jax.Array, shape: tuple[int, ...], place: NamedSharding) -> jax.Array:
  """An array over the devices of all processes, of the parts on those of this one."""
  parts = [shard.data for shard in leaf.addressable_shards]
  return jax.make_array_from_single_device_arrays(shape, place, parts)


def _separated(state: TrainState) -> tuple[TrainState, Any]:
  """The state without what it remembers of each row, and that: an empty dict if it does not."""
  extras = dict(state.extras)
  memory = {MEMORY: extras.pop(MEMORY)} if MEMORY in extras else {}
  return state.replace(extras=extras), memory


def _joined(state: TrainState, memory: Any) -> TrainState:
  return state.replace(extras={**state.extras, **memory})
