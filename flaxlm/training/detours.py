"""What a run does about bad steps: it ends, goes on without them, or goes back and past them."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from flaxlm import terminal
from flaxlm.errors import UserError
from flaxlm.paths import leaf_paths
from flaxlm.training.guard import FINE, NOT_FINITE, fresh
from flaxlm.types import GUARD, TrainState

if TYPE_CHECKING:
  from flaxlm.training.experiment import Experiment

# Characters of a warning about a bad step.
_LONGEST = 240


class BadStep(UserError):
  """A step that a run cannot go on from: a loss or gradient that is NaN, infinite, or a spike."""

  everywhere = True  # Every process reads the same metrics.


@dataclasses.dataclass(frozen=True)
class Detours:
  """How a run has left the straight way, of one batch and one update a step; part of a checkpoint.

  data_offset: the batch of the step after `step` updates is number step + data_offset; rollbacks:
  how often the run went back; skipped: bad steps that left everything as it was.
  """

  data_offset: int = 0
  rollbacks: int = 0
  skipped: int = 0

  @classmethod
  def of(cls, meta: Mapping[str, Any]) -> 'Detours':
    """Those of a checkpoint, from its description."""
    return cls(**meta.get('detours', {}))


class RollBack(Exception):
  """A bad step after which the run goes back to its last checkpoint, and past the batch."""

  everywhere = True

  def __init__(self, step: int, detours: Detours):
    """step: its number, from 1; detours: under which it came."""
    super().__init__(f'step {step}')
    self.step, self.detours = step, detours

  def back_at(self, step: int) -> Detours:
    """The detours of a run that goes on from `step` updates with the batch after the bad one."""
    passed = self.step + self.detours.data_offset - step
    return dataclasses.replace(
      self.detours, data_offset=passed, rollbacks=self.detours.rollbacks + 1
    )


class Judge:
  """Looks at the metrics of every step. `detours` are those so far."""

  def __init__(self, experiment: 'Experiment', detours: Detours):
    self._experiment, self._config = experiment, experiment.config.guard
    self.detours = detours

  def look(self, step: int, values: dict[str, float], leaf_norms: jax.Array) -> int:
    """Takes what the guard says out of `values`, and does what the policy says.

    Args:
      step: its number, from 1.
      values: metrics on the host; loses `verdict` and `in_a_row`, gets `rollbacks`.
      leaf_norms: [leaves that train].

    Returns:
      Updates before this step: without the steps that were skipped.

    Raises:
      BadStep: if the run cannot go on.
      RollBack: if it goes back.
    """
    finite = np.isfinite([values['loss'], values['grad_norm']]).all()
    verdict = int(values.pop('verdict', FINE if finite else NOT_FINITE))
    in_a_row = int(values.pop('in_a_row', 0))
    before = self.detours.skipped
    if 'skipped' in values:
      before = int(values['skipped']) - (verdict != FINE)
      values['rollbacks'] = self.detours.rollbacks
    if verdict != FINE:
      self._act(step, verdict, in_a_row, values, leaf_norms)
      self.detours = dataclasses.replace(self.detours, skipped=before + 1)
    return step - 1 - before

  def _act(
    self, step: int, verdict: int, in_a_row: int, values: dict[str, float], norms: jax.Array
  ) -> None:
    """Raises BadStep or RollBack, or says that the step was skipped."""
    config, number = self._config, step - 1 + self.detours.data_offset
    text = f'step {step}: loss {values["loss"]:.6g}, gradient norm {values["grad_norm"]:.6g}'
    text += self._leaves(norms) if verdict == NOT_FINITE else ', a spike'
    text += f'; batch: {self._experiment.train_data.describe(number)}'
    if config.policy == 'error':
      raise BadStep(f'{text}; nothing was saved after it')
    if config.policy == 'rollback':
      if self.detours.rollbacks >= config.max_rollbacks:
        raise BadStep(
          f'config.guard.max_rollbacks: rolled back {config.max_rollbacks} times; {text}'
        )
      terminal.warn(
        f'{_shortened(text)}; going back to the last checkpoint, and on past this batch'
      )
      raise RollBack(step, self.detours)
    if in_a_row > config.max_skipped:
      raise BadStep(f'config.guard.max_skipped: {in_a_row} bad steps in a row; {text}')
    terminal.warn(f'{_shortened(text)}; skipped ({int(values["skipped"])} so far in this run)')

  def _leaves(self, norms: jax.Array) -> str:
    """Which gradients are not finite."""
    params = self._experiment.abstract_state.params
    paths = list(leaf_paths(jax.eval_shape(self._experiment.partition.take, params)))
    found = zip(paths, np.asarray(norms), strict=True)
    bad = [path for path, norm in found if not np.isfinite(norm)]
    text = f'; not finite: the gradient of {bad[0]}' if bad else ''
    return text + (f' and {len(bad) - 1} more of {len(paths)} leaves' if len(bad) > 1 else '')


def _shortened(text: str) -> str:
  """For a line of the log that is not the last: a batch may have thousands of rows."""
  return text if len(text) <= _LONGEST else f'{text[:_LONGEST]} ...'


def as_stored(abstract: TrainState, meta: Mapping[str, Any]) -> TrainState:
  """The state to read where a guard came or went since the checkpoint: with one if that has one."""
  extras = {name: node for name, node in abstract.extras.items() if name != GUARD}
  if any(path.startswith(f'extras/{GUARD}/') for path in meta['digest']):
    everywhere = abstract.step.sharding
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)
    extras[GUARD] = jax.tree.map(place, jax.eval_shape(fresh))
  return abstract.replace(extras=extras)


def as_declared(state: TrainState, abstract: TrainState, detours: Detours) -> TrainState:
  """The state that was read, with a guard if `abstract` has one: a fresh one if need be."""
  extras = {name: node for name, node in state.extras.items() if name in abstract.extras}
  if GUARD in abstract.extras and GUARD not in extras:
    guard = jax.tree.map(np.asarray, fresh(detours.skipped))
    extras[GUARD] = jax.device_put(guard, abstract.step.sharding)
  return state.replace(extras=extras)
