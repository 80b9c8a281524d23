"""Beam search over the tokens of a decoder, for the texts of the highest penalised probability.

The score of a text of n new tokens, EOS included, is log p / ((5 + n) / 6)^alpha (Wu et al. 2016,
equation 14; the original Transformer, Vaswani et al. 2017, section 6.1, has alpha 0.6 and 4 beams).

At each step the best continuations of all beams are ranked. Of the first `size`, those that end
with EOS are finished and compete with what was finished before; the best `size` that do not end go
on. A row ends when `size` texts are finished and no beam can still become better than the worst of
them: log p only falls, and the penalty grows with the length. A single beam ends at its first EOS,
which makes it greedy decoding. Texts that reach the greatest length compete as they stand.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.decoding import cache as caches
from flaxlm.decoding.cache import Prompts, Reader
from flaxlm.decoding.sampling import without_repeats
from flaxlm.models.model import Model
from flaxlm.models.scores import log_probabilities
from flaxlm.objectives.base import Prompt
from flaxlm.types import Array


@dataclasses.dataclass(frozen=True)
class Beam:
  """size: beams of a row; length_penalty: alpha >= 0; no_repeat_ngram: as of Sampling."""

  size: int = 4
  max_new_tokens: int = 100
  length_penalty: float = 0.6
  no_repeat_ngram: int = 0


@dataclasses.dataclass(frozen=True)
class Hypothesis:
  """New token ids [n] without EOS, their log-probability with it, the score, 'eos' or 'length'."""

  tokens: np.ndarray
  log_probability: float
  score: float
  finish: str


@flax.struct.dataclass
class _Texts:
  """K texts of each row, best first: sequences int32 [B, K, S], prompt included; lengths [B, K].

  log_p, scores: float32 [B, K], -inf where there is no text.
  """

  sequences: Array
  lengths: Array
  log_p: Array
  scores: Array


@flax.struct.dataclass
class _State:
  """beams and finished texts; starts, limits: [B], length of the prompt, and new tokens at most."""

  count: Array
  beams: _Texts
  finished: _Texts
  done: Array
  starts: Array
  limits: Array
  source_segment_ids: Array | None
  cache: tuple[Any, ...]


def search(reader: Reader, prompts: Sequence[Prompt], beam: Beam) -> list[list[Hypothesis]]:
  """The best texts for each prompt, best first: as many as there are beams, or as were found.

  All texts end at reader.longest; of a prompt that fills it, the last half is read.
  """
  longest = reader.longest
  reads = [np.asarray(prompt.inputs, np.int32) for prompt in prompts]
  reads = [ids if len(ids) < longest else ids[-(longest // 2) :] for ids in reads]
  batch = caches.prepare(reader, prompts, reads, min(beam.max_new_tokens, longest))
  limits = np.minimum(min(beam.max_new_tokens, longest), longest - batch.lengths)
  idle = np.arange(len(limits)) >= len(reads)
  static = reader.model, dataclasses.replace(beam, max_new_tokens=0)
  state = _first(*static, reader.params, batch, limits, idle)
  state = _searched(*static, batch.eos_id, reader.params, state)
  beams, finished = jax.device_get((state.beams, state.finished))
  return [_hypotheses(beams, finished, row, len(ids), beam.size) for row, ids in enumerate(reads)]


def _hypotheses(
  beams: _Texts, finished: _Texts, row: int, start: int, size: int
) -> list[Hypothesis]:
  """The best of a row: of what was finished, and of beams that could not go on."""
  found = []
  for texts in (finished, beams):
    for k in np.flatnonzero(np.isfinite(texts.scores[row])):
      tokens = texts.sequences[row, k, start : texts.lengths[row, k]]
      ended = texts is finished
      tokens = tokens[:-1] if ended else tokens
      numbers = float(texts.log_p[row, k]), float(texts.scores[row, k])
      found.append(Hypothesis(tokens, *numbers, 'eos' if ended else 'length'))
  return sorted(found, key=lambda h: -h.score)[:size]


def penalty(tokens: Array, alpha: float) -> Array:
  """((5 + n) / 6)^alpha of n new tokens."""
  return ((5.0 + tokens) / 6.0) ** alpha


@functools.partial(jax.jit, static_argnums=(0, 1))
def _first(
  model: Model, beam: Beam, params: Any, prompts: Prompts, limits: Array, idle: Array
) -> _State:
  """Reads the prompts, once for all beams of a row, and takes the first step."""
  output, cache = caches.prefill(model, params, prompts)
  shape = len(limits), beam.size
  texts = _Texts(
    jnp.broadcast_to(prompts.sequences()[:, None], (*shape, prompts.slots)),
    jnp.broadcast_to(prompts.lengths[:, None], shape),
    # All beams are the same text, of which only one counts.
    jnp.broadcast_to(jnp.where(jnp.arange(beam.size) == 0, 0.0, -jnp.inf), shape),
    jnp.full(shape, -jnp.inf),
  )
  spread = lambda leaf: jnp.repeat(leaf, beam.size, axis=0)
  segments = None if prompts.source is None else spread(prompts.source.segment_ids)
  none = dataclasses.replace(texts, log_p=texts.scores)
  state = _State(
    jnp.int32(0), texts, none, idle, prompts.lengths, limits, segments, jax.tree.map(spread, cache)
  )
  return _stepped(state, spread(log_probabilities(output)), beam, prompts.eos_id)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _searched(model, beam, eos_id, params, state) -> _State:
  """Goes on until all rows are done; beams that reached the limit then have a score.

  The state that goes in is used up.
  """

  def step(state):
    rows, size, slots = state.beams.sequences.shape
    sequences = state.beams.sequences.reshape(rows * size, slots)
    place = state.beams.lengths.reshape(rows * size, 1) - 1
    token = jnp.take_along_axis(sequences, place, 1)
    output, cache = caches.call(model, params, token, place, state.cache, state.source_segment_ids)
    scores = log_probabilities(output.replace(hidden=output.hidden[:, 0]))
    return _stepped(state.replace(cache=cache), scores, beam, eos_id)

  state = jax.lax.while_loop(lambda state: ~state.done.all(), step, state)
  written = state.beams.lengths - state.starts[:, None]
  at_limit = written >= state.limits[:, None]
  scores = state.beams.log_p / penalty(written, beam.length_penalty)
  scores = jnp.where(at_limit, scores, -jnp.inf)
  return state.replace(beams=state.beams.replace(scores=scores))


def _stepped(state: _State, log_p: Array, beam: Beam, eos_id: int | None) -> _State:
  """The state with one more token, from log-probabilities [B * K, V] of the next."""
  rows, size, slots = state.beams.sequences.shape
  if beam.no_repeat_ngram:
    flat = state.beams.sequences.reshape(-1, slots), state.beams.lengths.reshape(-1)
    log_p = without_repeats(log_p, *flat, beam.no_repeat_ngram)
  vocab = log_p.shape[-1]
  total = (state.beams.log_p[..., None] + log_p.reshape(rows, size, vocab)).reshape(rows, -1)
  log_p, index = jax.lax.top_k(total, min(2 * size, total.shape[1]))
  token, parent = (index % vocab).astype(jnp.int32), index // vocab
  ends = jnp.zeros(token.shape, bool) if eos_id is None else token == eos_id
  grown = _Texts(
    _extended(_taken(state.beams.sequences, parent), state.beams.lengths[:, :1], token),
    jnp.broadcast_to(state.beams.lengths[:, :1] + 1, token.shape),
    log_p,
    log_p / penalty(state.count + 1, beam.length_penalty),
  )
  among = jnp.arange(token.shape[1]) < size
  finished = grown.replace(scores=jnp.where(ends & among, grown.scores, -jnp.inf))
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), state.finished, finished)
  _, best = jax.lax.top_k(both.scores, size)
  finished = jax.tree.map(lambda leaf: _taken(leaf, best), both)
  going, best = jax.lax.top_k(jnp.where(ends, -jnp.inf, grown.log_p), size)
  beams = jax.tree.map(lambda leaf: _taken(leaf, best), grown).replace(log_p=going)
  parent = jnp.take_along_axis(parent, best, 1)
  keep = lambda old, new: jnp.where(_aligned(state.done, old), old, new)
  finished = jax.tree.map(keep, state.finished, finished)
  beams = jax.tree.map(keep, state.beams, beams)
  parent = keep(jnp.broadcast_to(jnp.arange(size), parent.shape), parent)
  places = (jnp.arange(rows)[:, None] * size + parent).reshape(-1)
  own = lambda kept: kept.replace(own=jax.tree.map(lambda leaf: leaf[places], kept.own))
  hopeless = size == 1
  if size > 1:
    reach = beams.log_p[:, 0] / penalty(state.limits, beam.length_penalty)
    hopeless = finished.scores[:, -1] >= reach
  full = jnp.isfinite(finished.scores[:, -1])
  count = state.count + 1
  return state.replace(
    count=count,
    beams=beams,
    finished=finished,
    done=state.done | (full & hopeless) | (count >= state.limits),
    cache=tuple(map(own, state.cache)),
  )


def _extended(sequences: Array, lengths: Array, token: Array) -> Array:
  """Sequences [B, C, S] of `lengths` [B, 1] and one more token [B, C]."""
  here = jnp.arange(sequences.shape[-1]) == lengths[..., None]
  return jnp.where(here, token[..., None], sequences)


def _taken(leaf: Array, index: Array) -> Array:
  """[B, K, ...] at index [B, C] -> [B, C, ...]."""
  return jnp.take_along_axis(leaf, _aligned(index, leaf), 1)


def _aligned(marks: Array, leaf: Array) -> Array:
  """Marks with as many axes as the leaf, to be broadcast over its last ones."""
  return marks.reshape(marks.shape + (1,) * (leaf.ndim - marks.ndim))
