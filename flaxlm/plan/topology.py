"""TPU slices by name: their chips, and devices to compile for without having one."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax

from flaxlm.errors import UserError, first_line, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of a generation (Google Cloud, TPU system architecture).

  flops: bfloat16 operations a second; cycle_flops: operations a cycle of all its matrix units
  (128 x 128 multiply-adds each; v6e 256 x 256), so that flops / cycle_flops is the clock, inferred;
  memory_bytes; memory_rate and link_rate: bytes a second, of its memory, and out of the chip over
  all its links; dims: of the grid that chips are linked in; config: by which libtpu takes the two
  cores of a chip for one device, where it does not by itself.
  """

  name: str
  flops: float
  cycle_flops: float
  memory_bytes: float
  memory_rate: float
  link_rate: float
  dims: int
  config: str = ''

  @property
  def clock(self) -> float:
    """Cycles a second."""
    return self.flops / self.cycle_flops


CHIPS = {
  chip.name: chip
  for chip in (
    Chip('v4', 275e12, 2**18, 32 * 2**30, 1228e9, 300e9, 3, 'megacore'),
    Chip('v5e', 197e12, 2**17, 16 * 2**30, 819e9, 200e9, 2),
    Chip('v5p', 459e12, 2**18, 95 * 2**30, 2765e9, 600e9, 3),
    Chip('v6e', 918e12, 2**19, 32 * 2**30, 1640e9, 400e9, 2),
  )
}
# Without a metadata server to ask, libtpu warns about what these say; a topology does not read it.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
  'TPU_WORKER_HOSTNAMES': 'localhost',
}
INSTALL = 'pip install -r requirements-tpu.txt'


def devices(name: str) -> tuple[Chip, Sequence[jax.Device]]:
  """The chip and the devices of a slice such as 'v5e:16x16' or 'v5p:4x4x8'.

  Raises UserError for a name that is none, and where libtpu is not installed.
  """
  generation, _, shape = name.partition(':')
  if generation not in CHIPS:
    raise UserError(f'--topology: no TPU {generation!r}{nearest(generation, CHIPS)}')
  chip = CHIPS[generation]
  example = 'x'.join(['4'] * chip.dims)
  if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', shape) or shape.count('x') != chip.dims - 1:
    raise UserError(
      f'--topology: {name!r} is not GENERATION:CHIPSxCHIPS, as {generation}:{example}'
    )
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(f'--topology: the TPU compiler is not installed: {INSTALL}')
  _prepare()
  from jax.experimental import topologies

  options = {'chip_config_name': chip.config} if chip.config else {}
  if math.prod(map(int, shape.split('x'))) < 4:  # Less than one host has.
    options['chips_per_host_bounds'] = (*map(int, shape.split('x')), 1)[:3]
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=name, **options)
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
    raise UserError(
      f'--topology: {name!r} is not a slice: {first_line(error)}; {generation}:{example} is'
    ) from error
  return chip, found.devices


def _prepare() -> None:
  """Tells libtpu, before it is loaded, and JAX that there is no TPU to ask about or to use."""
  # Nothing runs on a TPU: two plans at once, or a plan beside a run, do not disturb each other.
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  jax.config.update('jax_platforms', 'cpu')
