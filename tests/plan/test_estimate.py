"""The range of a step's time, by hand, on the loop of test_hlo.py."""

import dataclasses

import pytest
from test_hlo import FUSED, LOOP

from flaxlm.errors import UserError
from flaxlm.plan import estimate, hlo, program, topology

# One operation a second: products 10 / s, memory 100 bytes / s, links 1000 bytes / s, 1 cycle / s.
SLOW = topology.Chip('slow', 10.0, 10.0, 1.0, 100.0, 1000.0, 2)
PRODUCT, READ, REDUCED = 2 * 8 * 16 * 16, 4 * (8 * 16 * 2 + 16 * 16), 512


def test_both_ends_of_the_range():
  step = estimate.read(hlo.parse(LOOP), SLOW)
  counter = 3 * 4 / SLOW.memory_rate  # `next` reads two numbers and writes one.
  links = 2 * 3 / 4 * REDUCED / SLOW.link_rate
  product = max(PRODUCT / SLOW.flops, READ / SLOW.memory_rate)
  assert step.low == pytest.approx(4 * (product + counter + links))
  assert step.high == pytest.approx(4 * (1503 / SLOW.clock + counter + links))
  assert step.flops == 4 * PRODUCT
  (kind,) = step.collectives
  assert (kind.times, kind.bytes, kind.alone) == (4, 4 * REDUCED, 4 * REDUCED)
  assert step.hottest[0].source == 'jit(f)/mlp/dot'
  assert step.covered == pytest.approx(1503 / (1503 + counter))


def test_memory_and_links_bound_what_runs_beside_other_work():
  """A hidden transfer takes no time of its own, but no step is shorter than its bytes need."""
  module = hlo.parse(FUSED)
  idle = dataclasses.replace(SLOW, memory_rate=1e9, link_rate=1.0)
  assert estimate.read(module, idle).low == 3 / 4 * 1024
  fast = dataclasses.replace(SLOW, memory_rate=1.0, link_rate=1e9)
  # Both fusions read 16 x 8 and write 64 x 8 bfloat16 numbers.
  assert estimate.read(module, fast).low == 2 * (256 + 1024)


def test_a_program_that_does_not_fit_says_how_much_it_needs():
  message = (
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. '
    'Used 19.50G of 15.75G hbm. Exceeded hbm capacity by 3.75G.'
  )
  assert program.overflow(message) == (int(19.5 * 2**30), int(15.75 * 2**30))
  assert program.overflow('INTERNAL: Used 19.50G of 15.75G hbm') is None


def test_clocks_are_those_of_the_chips():
  """Published peak over operations a cycle; v4's clock is published too (1,050 MHz)."""
  ghz = {name: chip.clock / 1e9 for name, chip in topology.CHIPS.items()}
  assert ghz == pytest.approx({'v4': 1.05, 'v5e': 1.503, 'v5p': 1.751, 'v6e': 1.751}, rel=1e-3)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v9:4x4', "no TPU 'v9'"),
    ('v5e', "'v5e' is not GENERATION:CHIPSxCHIPS, as v5e:4x4"),
    ('v6e:2x2x2', "'v6e:2x2x2' is not GENERATION:CHIPSxCHIPS, as v6e:4x4"),
    ('v5p:0x4x4', 'is not GENERATION:CHIPSxCHIPS, as v5p:4x4x4'),
  ],
)
def test_names_that_are_no_slice(name, message):
  with pytest.raises(UserError, match=message):
    topology.devices(name)


def test_a_missing_compiler_is_said_in_one_line(monkeypatch):
  monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='pip install -r requirements-tpu.txt'):
    topology.devices('v5e:4x4')
