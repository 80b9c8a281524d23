"""The training step itself, compiled ahead of time for the devices of an experiment's mesh."""

import dataclasses
import re

import jax

from flaxlm.plan import abstract, hlo
from flaxlm.training.experiment import Experiment

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes that a step takes on each device, by the compiler.

  state: parameters, optimizer and batch, which it is given; temporaries: activations, gradients
  and gathered parameters at their peak; code: the program; new: results that do not replace state;
  host: what lies in the memory of the host instead (`model.remat=offload`), outside the total.
  """

  state: int
  temporaries: int
  code: int
  new: int
  host: int

  @property
  def total(self) -> int:
    return self.state + self.temporaries + self.code + self.new


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled step; `module` is None, and `needed` what it takes, where it does not fit, and None
  of a step that was not compiled.

  text: what the module was read from.

  limit: bytes of a device that the compiler may use, where it said so.
  """

  module: hlo.Module | None
  memory: Memory | None
  needed: int | None
  limit: int | None = None
  text: str = ''


def compile_step(built: Experiment) -> Program:
  """Compiles `built.train_step`, with its shardings and donation, and reads what came out."""
  lowered = built.train_step.lower(built.abstract_state, abstract.batch(built))
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    sizes = overflow(str(error))
    if sizes is None:
      raise
    return Program(None, None, *sizes)
  stats = compiled.memory_analysis()
  memory = Memory(
    state=stats.argument_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
    new=stats.output_size_in_bytes - stats.alias_size_in_bytes,
    host=stats.host_temp_size_in_bytes,
  )
  text = compiled.as_text()
  return Program(hlo.parse(text), memory, memory.total, text=text)


def overflow(message: str) -> tuple[int, int] | None:
  """(bytes needed, bytes there are) of the compiler's message that memory does not suffice."""
  found = re.search(r'Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm', message)
  if 'RESOURCE_EXHAUSTED' not in message or not found:
    return None
  number = lambda i: int(float(found.group(i)) * _UNITS[found.group(i + 1)])
  return number(1), number(3)
