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

  def __init__(self, step: Step, state: TrainState, rows: NamedSharding):
    devices = list(rows.mesh.devices.flat)
    extras = {name: 0 if name == MEMORY else None for name in state.extras}
    axes = TrainState(None, None, None, extras)
    self._run = jax.pmap(
      step,
      axis_name=AXIS,
      in_axes=(axes, 0),
      out_axes=(axes, None),
      axis_size=len(devices),
      devices=devices,
      donate_argnums=0,
    )
    parts = len(devices)
    cut = lambda x: x.reshape(parts, -1, *x.shape[1:])
    join = lambda x: x.reshape(-1, *x.shape[2:])
    # [B, ...] <-> [devices, B / devices, ...]; no row leaves its device.
    self._cut = jax.jit(lambda tree: jax.tree.map(cut, tree), out_shardings=rows)
    self._join = jax.jit(lambda tree: jax.tree.map(join, tree), out_shardings=rows)

  def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
    state, metrics = self._run(*self._divided(state, batch))
    return _with_memory(state, self._join), metrics

  def lower(self, state: TrainState, batch: Batch) -> Any:
    """As of a jitted function, of arrays or abstract arrays."""
    return self._run.lower(*jax.eval_shape(self._divided, state, batch))

  def _divided(self, state: TrainState, batch: Batch) -> tuple[TrainState, Batch]:
    return _with_memory(state, self._cut), self._cut(batch)


def _with_memory(state: TrainState, change: Callable[[Any], Any]) -> TrainState:
  """The state with another form of what it remembers of each row, if it does."""
  if MEMORY not in state.extras:
    return state
  return state.replace(extras={**state.extras, MEMORY: change(state.extras[MEMORY])})
