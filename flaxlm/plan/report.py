"""A plan as an object, for scripts, and as lines, for people."""

import dataclasses
from typing import Any

import jax

from flaxlm import terminal
from flaxlm.plan import estimate, program, sizes
from flaxlm.plan.topology import Chip
from flaxlm.training.experiment import Experiment

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
  """What one compile of one experiment told.

  change: overrides that this attempt adds to the user's; flops: of products, on one device; step:
  for a TPU that the program fits. collectives stand in it, or here where there is no chip; program:
  the compiled text.
  """

  mesh: tuple[int, ...]
  devices: int
  device: str
  sizes: sizes.Sizes
  memory: program.Memory | None
  needed: int | None
  limit: int | None
  fits: bool | None
  flops: float | None
  collectives: tuple[estimate.Collective, ...]
  step: estimate.Step | None
  chip: Chip | None
  change: dict[str, str]
  program: str

  @property
  def utilisation(self) -> tuple[float, float] | None:
    """Model FLOPs utilisation: (that of the high estimate of time, that of the low)."""
    if self.step is None or self.chip is None:
      return None
    each = self.sizes.model_flops_per_step / self.devices
    return tuple(each / (s * self.chip.flops) for s in (self.step.high, self.step.low))


def make(
  built: Experiment, chip: Chip | None, change: dict[str, str], shapes_only: bool = False
) -> Plan:
  """Compiles the step of an experiment, if it may, and gathers what the plan says of it."""
  compiled = program.Program(None, None, None) if shapes_only else program.compile_step(built)
  module = compiled.module
  step = estimate.read(module, chip) if chip and module else None
  limit = compiled.limit or (int(chip.memory_bytes) if chip else _local_limit(built))
  return Plan(
    mesh=built.mesh.devices.shape,
    devices=built.mesh.size,
    device=chip.name if chip else built.mesh.devices.flat[0].device_kind,
    sizes=sizes.of(built),
    memory=compiled.memory,
    needed=compiled.needed,
    limit=limit,
    fits=_fits(compiled, limit),
    flops=step.flops if step else estimate.flops(module) if module else None,
    collectives=step.collectives if step else estimate.gather(module) if module else (),
    step=step,
    chip=chip,
    change=change,
    program=compiled.text,
  )


def _fits(compiled: program.Program, limit: int | None) -> bool | None:
  """None where nothing was compiled, or the device does not say how much memory it has."""
  if limit is None or compiled.needed is None:
    return None
  return compiled.module is not None and compiled.needed <= limit


def _local_limit(built: Experiment) -> int | None:
  """Bytes of memory of a device that is here; None where it does not say."""
  device = built.mesh.devices.flat[0]
  stats = device.memory_stats() if device in jax.local_devices() else None
  return (stats or {}).get('bytes_limit')


def as_dict(plan: Plan) -> dict[str, Any]:
  """For JSON: bytes, seconds, operations; *_per_device of the fullest device."""
  found = {
    'mesh': list(plan.mesh),
    'devices': plan.devices,
    'device': plan.device,
    'change': plan.change,
    **dataclasses.asdict(plan.sizes),
    'memory_per_device': None if plan.memory is None else dataclasses.asdict(plan.memory),
    'activation_bytes_per_device': None if plan.memory is None else plan.memory.temporaries,
    'bytes_needed_per_device': plan.needed,
    'bytes_limit_per_device': plan.limit,
    'fits': plan.fits,
    'compiler_flops_per_device': plan.flops,
    'compiler_flops_per_step': None if plan.flops is None else plan.flops * plan.devices,
    'collectives_per_device': [dataclasses.asdict(c) for c in plan.collectives],
    'estimate': None,
  }
  if plan.step is not None:
    low, high = plan.step.low, plan.step.high
    found['estimate'] = {
      'measured': False,
      'seconds': [low, high],
      'mfu': list(plan.utilisation),
      'tokens_per_second': [plan.sizes.tokens_per_step / s for s in (high, low)],
      'memory_traffic_bytes_per_device': plan.step.memory_bytes,
      'share_from_compiler_cycles': plan.step.covered,
      'hottest': [dataclasses.asdict(hot) for hot in plan.step.hottest],
      'left_out': list(estimate.LEFT_OUT),
    }
  return found


def lines(plan: Plan) -> list[str]:
  """For people."""
  s, count = plan.sizes, terminal.count
  parts, passes = f'{s.parameters:,}; trunk {count(s.trunk_parameters)}', 'forward and backward'
  if s.trained_parameters is not None:
    parts += f'; {s.trained_parameters:,} train'
    passes += ', as if all of it trained'
  row = '  {:<26}{:>12}  {}'.format
  found = [
    f'{plan.devices} x {plan.device}, mesh {"x".join(map(str, plan.mesh))}',
    row('parameters', count(s.parameters), parts),
    row('  their bytes', _gib(s.parameter_bytes), f'{_gib(s.parameter_bytes_per_device)} a device'),
    row(
      'optimizer state', _gib(s.optimizer_bytes), f'{_gib(s.optimizer_bytes_per_device)} a device'
    ),
    row('tokens a step', count(s.tokens_per_step), 'padding included'),
    row('FLOPs a step, by formula', count(s.model_flops_per_step), passes),
  ]
  if plan.flops is not None:
    ratio = plan.flops * plan.devices / s.model_flops_per_step
    text = f'{count(plan.flops)} a device; {ratio:.3f} of the formula'
    found.append(row('  as compiled', count(plan.flops * plan.devices), text))
  found += _memory_lines(plan, row)
  if plan.collectives:
    found.append('between devices, of each device and step')
    for c in plan.collectives:
      text = f'{c.times:,.0f} times, {c.alone / c.bytes if c.bytes else 0:.0%} with nothing beside'
      found.append(row(f'  {c.kind}', f'{c.bytes / 1e9:,.3f} GB', text))
  return found + _estimate_lines(plan, row)


def _memory_lines(plan: Plan, row) -> list[str]:
  if plan.needed is None:
    return []
  found = ['memory of each device, by the compiler']
  if plan.memory is not None:
    found += [
      row('  state and batch', _gib(plan.memory.state), ''),
      row('  activations, gradients', _gib(plan.memory.temporaries), 'and gathered parameters'),
      row('  program, new results', _gib(plan.memory.code + plan.memory.new), ''),
    ]
    if plan.memory.host:
      found.append(row('  on its host, besides', _gib(plan.memory.host), ''))
  verdict = {None: '', True: ': it fits', False: ': IT DOES NOT FIT'}[plan.fits]
  of = f'of {_gib(plan.limit)}' if plan.limit else 'the device does not say how much it has'
  return [*found, row('  together', _gib(plan.needed), of + verdict)]


def _estimate_lines(plan: Plan, row) -> list[str]:
  if plan.step is None:
    return []
  step, share = plan.step, plan.utilisation
  tokens = [terminal.count(plan.sizes.tokens_per_step / s) for s in (step.high, step.low)]
  rate = f'{plan.chip.clock / 1e9:.3f} GHz'
  found = [
    'estimated, not measured',
    row('  seconds a step', f'{step.low:.3g} - {step.high:.3g}', f'roofline - cycles at {rate}'),
    row('  tokens a second', f'{tokens[0]} - {tokens[1]}', ''),
    row('  model FLOPs utilisation', f'{share[0]:.0%} - {share[1]:.0%}', 'by the formula'),
    f'  left out: {"; ".join(estimate.LEFT_OUT)}',
    'what takes most, by the cycles of the compiler',
  ]
  for hot in step.hottest:
    found.append(f'  {hot.seconds / step.high:>6.1%}  {_short(hot.source)}')
  return found


def _gib(number: float) -> str:
  return f'{number / GIB:,.2f} GiB'


def _short(source: str) -> str:
  """The end of an operation's path, which says where in the model it is."""
  parts = [part for part in source.split('/') if part not in ('while', 'body', 'closed_call')]
  return '/'.join(parts)[-88:]
