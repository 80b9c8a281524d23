"""What to change next in a run that does not fit."""

from collections.abc import Iterator

from flaxlm.config.transformer import REMAT
from flaxlm.plan.report import Plan
from flaxlm.training.experiment import Experiment

# Of a device's memory: more state than this leaves no room for activations.
_STATE_SHARE = 0.6
_MOST_TENSOR = 8


def changes(built: Experiment, plan: Plan) -> Iterator[dict[str, str]]:
  """Overrides that lower the memory of a device, the cheapest in time first.

  Parameters over all devices, or as many as can be, then heavier recomputation, then
  micro-batches, then rows that several devices share. Whether a parameter or a batch divides over
  the devices is not looked at: a change that `build` does not accept is none.
  """
  config, limit = built.config, plan.limit
  data, sharded, tensor = plan.mesh
  # Gradients are as large as parameters.
  state = 2 * plan.sizes.parameter_bytes_per_device + plan.sizes.optimizer_bytes_per_device
  whole = {'parallelism': 'jit'} if config.parallelism == 'pmap' else {}
  for parts in (n for n in range(data, 1, -1) if data % n == 0):
    yield {'mesh': f'{data // parts},{sharded * parts},{tensor}', **whole}
  heavier = REMAT[REMAT.index(config.model.remat) + 1 :]
  if heavier:
    yield {'model.remat': heavier[-1] if plan.needed > 1.5 * limit else heavier[0]}
  rows = config.global_batch_size // (config.num_microbatches * data * sharded)
  if rows > 1 and state < limit:
    wanted = (plan.needed - state) / max(limit - state, 0.1 * limit)
    parts = next(n for n in range(2, rows + 1) if rows % n == 0 and (n >= wanted or n == rows))
    yield {'num_microbatches': str(config.num_microbatches * parts)}
  wider = tensor * 2
  heads = config.model.kv_heads
  if wider <= _MOST_TENSOR and sharded % 2 == 0 and heads % wider == 0:
    yield {'mesh': f'{data},{sharded // 2},{wider}', **whole}


def devices_needed(plan: Plan) -> int:
  """Devices over which the state alone would leave room, if every one has its part."""
  state = 2 * plan.sizes.parameter_bytes + plan.sizes.optimizer_bytes
  return int(-(-state // (_STATE_SHARE * plan.limit)))
