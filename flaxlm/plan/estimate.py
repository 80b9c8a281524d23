"""How long a step would take on a TPU, as a range, from the compiler's own program for it.

low: every operation at the roofline, its products at the peak of the matrix units or its bytes at
the rate of the memory, whichever takes longer. high: the cycles that the compiler estimated when it
chose how to run each operation, over the clock; at the roofline where it gave none. Both add the
collectives that stand alone, at the full rate of all links, and attention kernels, into which the
compiler does not look, at half the peak. Neither is less than what all links, or the memory, need
for their bytes.
"""

import dataclasses
from collections import defaultdict

from flaxlm.plan import costs, hlo
from flaxlm.plan.topology import Chip

KERNEL_SHARE = 0.5
LEFT_OUT = (
  'input and other work of the hosts',
  'launching the program and synchronising chips',
  'slower chips and links, and links that other traffic shares',
  'saving checkpoints and evaluating',
  'overlap of collectives beyond what one fusion holds',
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """All operations of one kind in a step, on one chip.

  bytes: of results (operands of a reduce-scatter); alone: those of them that nothing runs beside;
  seconds: of all, at the full rate of the links.
  """

  kind: str
  times: float
  bytes: float
  alone: float
  seconds: float


@dataclasses.dataclass(frozen=True)
class Hot:
  """An operation of the model and what it takes in a step, by the compiler's cycles."""

  source: str
  seconds: float
  flops: float
  bytes: float


@dataclasses.dataclass(frozen=True)
class Step:
  """Of one chip: operations of products, bytes of memory, seconds.

  covered: share of the high estimate that the compiler's cycles are.
  """

  flops: float
  memory_bytes: float
  collectives: tuple[Collective, ...]
  low: float
  high: float
  covered: float
  hottest: tuple[Hot, ...]


def read(module: hlo.Module, chip: Chip, hottest: int = 10) -> Step:
  """The step of a program that was compiled for the chip."""
  low = high = counted = flops = memory = 0.0
  hot = defaultdict(lambda: [0.0, 0.0, 0.0])
  for work in costs.works(module):
    flops += work.times * work.flops
    memory += work.times * work.bytes
    if work.hidden:
      continue
    share = KERNEL_SHARE if work.kernel else 1.0
    roofline = max(work.flops / (chip.flops * share), work.bytes / chip.memory_rate)
    taken = roofline if work.cycles is None else work.cycles / chip.clock
    low += work.times * min(roofline, taken)
    high += work.times * taken
    counted += 0.0 if work.cycles is None else work.times * taken
    sums = hot[work.source or work.name]
    for i, amount in enumerate((taken, work.flops, work.bytes)):
      sums[i] += work.times * amount
  collectives = gather(module, chip)
  alone = sum(c.seconds * c.alone / c.bytes for c in collectives if c.bytes)
  floor = max(sum(c.seconds for c in collectives), memory / chip.memory_rate)
  ranked = sorted(hot.items(), key=lambda item: -item[1][0])[:hottest]
  return Step(
    flops=flops,
    memory_bytes=memory,
    collectives=collectives,
    low=max(low + alone, floor),
    high=max(high + alone, floor),
    covered=counted / high if high else 0.0,
    hottest=tuple(Hot(source, *sums) for source, sums in ranked),
  )


def flops(module: hlo.Module) -> float:
  """Operations of all matrix products of a program, on one device."""
  return sum(work.times * work.flops for work in costs.works(module))


def gather(module: hlo.Module, chip: Chip | None = None) -> tuple[Collective, ...]:
  """Collectives by kind, the largest first; without a chip they take no time."""
  found = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
  for transfer in costs.transfers(module):
    sums = found[transfer.kind]
    sums[0] += transfer.times
    sums[1] += transfer.times * transfer.bytes
    sums[2] += 0.0 if transfer.hidden else transfer.times * transfer.bytes
    sums[3] += transfer.times * transfer.wire / chip.link_rate if chip else 0.0
  ranked = sorted(found.items(), key=lambda item: -item[1][1])
  return tuple(Collective(kind, *sums) for kind, sums in ranked)
