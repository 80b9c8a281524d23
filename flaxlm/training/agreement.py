"""A signal that one process of several gets becomes known to all of them at the same step."""

from collections import deque
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flaxlm import distributed, sharding

# Votes in flight: as many calls later all know, so that no step waits for the vote before it. None
# on CPUs, which run programs in as many threads as there are cores: there, a vote that waits for
# another process and programs that are started meanwhile can keep threads from each other for ever.
_LAG = 2


class Vote:
  """A number that any process may raise from 0, as all processes see it at the same call.

  Every process calls it equally often, between the same steps. Each call hands in the number of
  this process, by a reduction over devices beside the step, and returns the greatest that was
  handed in a few calls before; from the first that is not 0 on it stays. In a run of one process a
  call returns the number itself.
  """

  def __init__(self, mesh: Mesh, number: Callable[[], int | None]):
    self._number, self._decided = number, 0
    self._alone = distributed.count() == 1
    self._pending: deque[jax.Array] = deque()
    if not self._alone:
      self._placed = sharding.one_each(mesh)
      self._devices = mesh.size
      self._lag = 0 if mesh.devices.flat[0].platform == 'cpu' else _LAG
      self._greatest = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))

  def __call__(self) -> int:
    """The number that all know of; 0 for none."""
    if self._alone:
      return self._number() or 0
    if self._decided:
      return self._decided
    mine = np.array([self._number() or 0], np.int32)
    votes = jax.make_array_from_callback((self._devices,), self._placed, lambda _: mine)
    self._pending.append(self._greatest(votes))
    if len(self._pending) > self._lag:
      self._decided = int(self._pending.popleft())
    return self._decided
