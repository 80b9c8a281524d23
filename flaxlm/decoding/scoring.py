"""Log-probabilities of given tokens: of next-token models from left to right, of masked models.

A sequence that is longer than the window is read in windows that overlap: each moves on by the
stride and scores what no earlier one has scored, so that every token but the first few is given at
least window - stride tokens before it. Where one window holds everything, that is the full context.

A masked model gives a pseudo-log-likelihood: every token is masked by itself and predicted from all
others (Salazar et al. 2020, section 2). Such values compare texts under one model; they are no
probabilities of texts.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from flaxlm.data import packing
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.decoding import cache as caches
from flaxlm.errors import UserError
from flaxlm.models.model import Model
from flaxlm.objectives import losses
from flaxlm.objectives.base import Objective


@dataclasses.dataclass(frozen=True)
class Text:
  """What is scored: tokens [n] behind a context [m] of given ones; encoder_inputs: or None.

  prefix: the tokens of the context see each other in both directions.
  """

  context: np.ndarray
  tokens: np.ndarray
  encoder_inputs: np.ndarray | None = None
  prefix: bool = False


@dataclasses.dataclass(frozen=True)
class _Unit:
  """One row of one batch. places: of the text's tokens that it scores; seen: inputs of a prefix."""

  text: int
  places: range
  inputs: np.ndarray
  targets: np.ndarray
  encoder_inputs: np.ndarray | None = None
  seen: int = 0


def windows(length: int, size: int, stride: int) -> Iterator[tuple[int, int, int]]:
  """(start, stop, first scored) of windows over `length` places; each place is scored once."""
  start, scored = 0, 0
  while scored < length:
    stop = min(start + size, length)
    yield start, stop, scored
    scored = stop
    start = stop + stride - size


class Scorer:
  """Scores texts with a model.

  objective, tokenizer: of the run. window: tokens that the model reads at once; stride: by how many
  a window moves on, at most as many; rows: in one batch.
  """

  def __init__(
    self,
    model: Model,
    params: Any,
    objective: Objective,
    tokenizer: Tokenizer,
    window: int,
    stride: int,
    rows: int = 8,
  ):
    self._model, self._params = model, params
    self._objective, self._tokenizer = objective, tokenizer
    self.window, self.stride, self._rows = window, min(stride, window), rows
    self._masked = objective.predicts_masks
    decoders = [s.capacity for s in objective.streams.values() if 'decoder_inputs' in s.keys]
    self._target_window = max([*decoders, window])

  def text(self, text: str, context: str | None = None, end: bool = False) -> Text:
    """The tokens of a text, behind its context.

    context: a text before it or, of an encoder-decoder, the source; None: nothing. end: EOS counts
    as a token of the text, where texts end with one.
    """
    t = self._tokenizer
    if self._masked:
      before, tokens = self._behind(context or '', text)
      return Text(before, tokens)
    prompt = self._objective.prompt(context or '')
    if context is None and prompt.encoder_inputs is not None:
      raise UserError('an encoder-decoder scores a text given its source: a context is missing')
    before, tokens = prompt.inputs, t.encode(text)
    if self._objective.sentinels:
      tokens = t.encode_marked(text, t.sentinel_marks)
    if context and self._objective.packing == 'concatenate' and prompt.encoder_inputs is None:
      # Running text knows no seam between the two, so that neither do its tokens.
      marks = before[: len(before) - len(t.encode(context))]
      before, tokens = self._behind(context, text)
      before = np.append(marks, before)
      before = before if len(before) else self._objective.prompt('').inputs
    if end and prompt.eos_id is not None:
      tokens = np.append(tokens, prompt.eos_id)
    before, tokens = before.astype(np.int32), tokens.astype(np.int32)
    return Text(before, tokens, prompt.encoder_inputs, prompt.prefix)

  def _behind(self, context: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens of the context, tokens of the text behind it), as of both in one.

    A space at the seam belongs to the text: many vocabularies have it in a word's first token. So
    does a token that stands across the seam.
    """
    kept = len(context.rstrip(' '))
    tokens, offsets = self._tokenizer.encode_with_offsets(context + text)
    ends = (i for i, (_, end) in enumerate(offsets) if end > kept or not kept)
    cut = next(ends, len(tokens))
    return tokens[:cut], tokens[cut:]

  def together(self, texts: Sequence[Text]) -> list[Text]:
    """Texts behind one context, with as much of its end as one window holds beside the longest.

    They are to be compared, so that what they are read behind must be the same. Where one of them
    alone is longer than a window, or a source is read, they stay as they are.
    """
    longest = max(len(text.tokens) for text in texts)
    room = (self.window - 2 if self._masked else self.window + 1) - longest
    if room < (0 if self._masked else 1) or texts[0].encoder_inputs is not None:
      return list(texts)
    # Such a model has read no row that does not begin with them.
    marks = min(room, self._objective.prompt_marks)

    def cut(context: np.ndarray) -> np.ndarray:
      tail = context[marks:]
      return np.append(context[:marks], tail[max(len(tail) - (room - marks), 0) :])

    return [dataclasses.replace(text, context=cut(text.context)) for text in texts]

  def check(self, text: Text) -> None:
    """UserError for a source or a target of an encoder-decoder that is read in no one window."""
    if text.encoder_inputs is None:
      return
    target = len(text.context) + len(text.tokens) - 1
    for name, size, most in (
      ('source', len(text.encoder_inputs), self.window), ('target', target, self._target_window),
    ):  # fmt: skip
      if size > most:
        raise UserError(f'a {name} of {size} tokens does not fit the {most} of a row')

  def log_probabilities(self, texts: Sequence[Text]) -> list[np.ndarray]:
    """Natural logarithms, float32 [n], of the tokens of each text."""
    found = [np.zeros(len(text.tokens), np.float32) for text in texts]
    units = [unit for number, text in enumerate(texts) for unit in self._units(number, text)]
    # Rows of like lengths share a batch; the order does not matter.
    units.sort(key=lambda unit: len(unit.inputs))
    for start in range(0, len(units), self._rows):
      batch = units[start : start + self._rows]
      scores = self._masked_scores(batch) if self._masked else self._next_scores(batch)
      for unit, row in zip(batch, scores, strict=True):
        found[unit.text][unit.places.start : unit.places.stop] = row
    return found

  def _units(self, number: int, text: Text) -> Iterator[_Unit]:
    whole = np.concatenate([text.context, text.tokens])
    given = len(text.context)
    if self._masked:
      room = self.window - 2
      for start, stop, first in windows(len(whole), room, min(self.stride, room)):
        for place in range(max(first, given), stop):
          inputs = whole[start:stop].copy()
          inputs[place - start] = self._tokenizer.mask_id
          inputs = np.concatenate([[self._tokenizer.cls_id], inputs, [self._tokenizer.sep_id]])
          target = np.array([place - start + 1, whole[place]])
          yield _Unit(number, range(place - given, place - given + 1), inputs, target)
      return
    self.check(text)
    # Target i is predicted at input i, which is the token before it.
    size = self.window if text.encoder_inputs is None else self._target_window
    for start, stop, first in windows(len(whole) - 1, size, min(self.stride, size)):
      first = max(first, given - 1)
      if first < stop:
        places = range(first - given + 1, stop - given + 1)
        inputs, targets = whole[start:stop], whole[start + 1 : stop + 1]
        seen = max(0, given - start) if text.prefix else 0
        yield _Unit(number, places, inputs, targets, text.encoder_inputs, seen)

  def _next_scores(self, units: Sequence[_Unit]) -> list[np.ndarray]:
    """Log-probabilities of what each unit scores."""
    width = caches.bucket(max(len(unit.inputs) for unit in units))
    inputs, lengths = caches.padded([unit.inputs for unit in units], self._rows, width)
    targets, _ = caches.padded([unit.targets for unit in units], self._rows, width)
    prefix = 'decoder_' if units[0].encoder_inputs is not None else ''
    batch = _stream(prefix, inputs, lengths)
    if prefix:
      sources = [unit.encoder_inputs for unit in units]
      sources, sizes = caches.padded(sources, self._rows, caches.bucket(max(map(len, sources))))
      batch |= _stream('encoder_', sources, sizes)
    seen = np.array([unit.seen for unit in units] + [0] * (self._rows - len(units)))
    if seen.any():
      batch['prefix'] = (batch['positions'] < seen[:, None]).astype(np.int32)
    nll = np.asarray(_next(self._model, self._params, batch, targets))
    return [
      -row[len(unit.inputs) - len(unit.places) : len(unit.inputs)]
      for row, unit in zip(nll, units, strict=False)
    ]

  def _masked_scores(self, units: Sequence[_Unit]) -> list[np.ndarray]:
    width = caches.bucket(max(len(unit.inputs) for unit in units), self.window)
    inputs, lengths = caches.padded([unit.inputs for unit in units], self._rows, width)
    marks = np.zeros((self._rows, 2), np.int32)
    marks[: len(units)] = [unit.targets for unit in units]
    batch = masked_batch(self._objective, inputs, lengths, marks[:, :1])
    return -np.asarray(_masked(self._model, self._params, batch, marks[:, 1:]))[: len(units)]


def masked_batch(
  objective: Objective, inputs: np.ndarray, lengths: np.ndarray, positions: np.ndarray
) -> dict[str, np.ndarray]:
  """What a masked model reads: inputs [B, L] of `lengths` [B], predicted at positions [B, T]."""
  batch = {
    key: np.zeros((len(inputs), 1), packing.dtype_of(key))
    for stream in objective.streams.values()
    for key in stream.keys
  }
  batch |= _stream('', inputs, lengths)
  return batch | {'token_type_ids': np.zeros_like(inputs), 'target_positions': positions}


def _stream(prefix: str, inputs: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
  """inputs [B, L], one segment of `lengths` [B] in each row."""
  segments = (np.arange(inputs.shape[1]) < lengths[:, None]).astype(np.int32)
  return packing.one_segment(prefix, inputs, segments)


@functools.partial(jax.jit, static_argnums=0)
def _next(model, params, batch, targets) -> jax.Array:
  """-log p [B, T] of next tokens."""
  return losses.token_scores(model.apply({'params': params}, batch)[0], targets)[0]


@functools.partial(jax.jit, static_argnums=0)
def _masked(model, params, batch, targets) -> jax.Array:
  """-log p [B, T] of masked tokens."""
  return losses.token_scores(model.apply({'params': params}, batch)[0]['mlm'], targets)[0]
