"""Several masks of one text, filled jointly by a masked language model.

Best first (Schick and Schuetze 2021, "It's Not Just Size That Matters", section 3.1): of the masks
that are left, the one whose likeliest token the model is surest of is filled, and the model reads
the text anew, until none is left. Here with a beam: each text keeps the best fillings so far by the
sum of their log-probabilities, in which every token was given those filled before it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.decoding import cache as caches
from flaxlm.decoding.scoring import masked_batch
from flaxlm.models.model import Model
from flaxlm.models.scores import log_probabilities
from flaxlm.objectives.base import Objective

# The masks of a text are counted up to a multiple of this, so that few shapes are compiled.
SLOTS = 4


@dataclasses.dataclass(frozen=True)
class Filling:
  """A row [L] with its masks filled, and the summed log-probability of what fills them."""

  inputs: np.ndarray
  log_p: float


@dataclasses.dataclass(frozen=True)
class Filled:
  """Of one text with M masks.

  positions: [M]; ids, log_p: [M, C], the likeliest tokens at each mask while all are masked;
  fillings: of all masks jointly, best first.
  """

  positions: np.ndarray
  ids: np.ndarray
  log_p: np.ndarray
  fillings: list[Filling]


class Filler:
  """Fills the masks of texts.

  beams: fillings of a text that are kept; candidates: tokens that are looked at for each mask;
  rows: texts at once. One program is compiled for all texts of a bucket of lengths.
  """

  def __init__(
    self,
    model: Model,
    params: Any,
    objective: Objective,
    mask_id: int,
    *,
    beams: int,
    candidates: int,
    rows: int = 4,
  ):
    self._model, self._params, self._objective = model, params, objective
    self._mask_id, self._beams, self.rows = mask_id, beams, rows
    self._candidates = max(beams, candidates)

  def fill(self, texts: Sequence[np.ndarray]) -> list[Filled]:
    """Fills at most `rows` rows of token ids [L], each with one mask or more."""
    masks = [np.flatnonzero(text == self._mask_id) for text in texts]
    width = caches.bucket(max(map(len, texts)))
    slots = -(-max(map(len, masks)) // SLOTS) * SLOTS
    beams = [[Filling(text, 0.0)] for text in texts]
    alone = None
    while any((beam[0].inputs == self._mask_id).any() for beam in beams):
      ids, log_p = self._likeliest(beams, masks, width, slots)
      alone = alone or (ids[:, 0], log_p[:, 0])
      beams = [
        self._grown(beam, mask, ids[row], log_p[row])
        for row, (beam, mask) in enumerate(zip(beams, masks, strict=True))
      ]
    return [
      Filled(mask, alone[0][row, : len(mask)], alone[1][row, : len(mask)], beam)
      for row, (mask, beam) in enumerate(zip(masks, beams, strict=True))
    ]

  def _likeliest(self, beams, masks, width: int, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, log p) [rows, beams, slots, C] of the likeliest tokens at each mask of each filling."""
    inputs = np.zeros((self.rows, self._beams, width), np.int32)
    lengths = np.ones((self.rows, self._beams), np.int32)
    positions = np.zeros((self.rows, self._beams, slots), np.int32)
    for row, (beam, mask) in enumerate(zip(beams, masks, strict=True)):
      positions[row, :, : len(mask)] = mask
      for k, filling in enumerate(beam):
        inputs[row, k, : len(filling.inputs)] = filling.inputs
        lengths[row, k] = len(filling.inputs)
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    batch = masked_batch(self._objective, flat(inputs), flat(lengths), flat(positions))
    found = _top(self._model, self._candidates, self._mask_id, self._params, batch)
    return tuple(np.asarray(x).reshape(*positions.shape, -1) for x in found)

  def _grown(self, beam, mask, ids: np.ndarray, log_p: np.ndarray) -> list[Filling]:
    """The best fillings with one mask less; those of a text that has none left stay."""
    grown: dict[bytes, Filling] = {}
    for k, filling in enumerate(beam):
      left = np.flatnonzero(filling.inputs[mask] == self._mask_id)
      if not len(left):
        return beam
      surest = left[log_p[k, left, 0].argmax()]
      for id, score in zip(ids[k, surest], log_p[k, surest], strict=True):
        inputs = filling.inputs.copy()
        inputs[mask[surest]] = id
        new = Filling(inputs, filling.log_p + float(score))
        # Two orders of filling may come to the same text.
        old = grown.get(inputs.tobytes(), new)
        grown[inputs.tobytes()] = max(old, new, key=lambda f: f.log_p)
    return sorted(grown.values(), key=lambda f: -f.log_p)[: self._beams]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _top(model, count, mask_id, params, batch) -> tuple[jax.Array, jax.Array]:
  """(ids, log p) [N, T, count] of the likeliest tokens at the predicted positions."""
  log_p = log_probabilities(model.apply({'params': params}, batch)[0]['mlm'])
  log_p = log_p.at[..., mask_id].set(-jnp.inf)  # It fills nothing.
  best, ids = jax.lax.top_k(log_p, min(count, log_p.shape[-1] - 1))
  return ids, best
