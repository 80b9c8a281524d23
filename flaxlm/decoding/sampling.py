"""How the next token is drawn from its scores."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from flaxlm.types import Array


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is chosen. temperature 0: always the likeliest (greedy).

  Filters apply in this order, each to what the one before has left, as in Hugging Face
  transformers. top_k: the k likeliest (Fan et al. 2018), 0 for all; top_p: the likeliest that
  together have probability p (Holtzman et al. 2020); min_p: those at least min_p times as likely as
  the likeliest (Nguyen et al. 2024). no_repeat_ngram: no sequence of that many tokens comes twice
  in what the decoder has read and written (Paulus et al. 2018, section 2.5); 0: it may.
  """

  max_new_tokens: int = 100
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  no_repeat_ngram: int = 0
  seed: int = 0


def choose(scores: Array, sampling: Sampling, keys: Array) -> Array:
  """Logits [B, V] and one key a row -> int32 [B]."""
  if sampling.temperature == 0.0:
    return scores.argmax(-1).astype(jnp.int32)
  kept, ids = candidates(scores, sampling)
  drawn = jax.vmap(jax.random.categorical)(keys, kept)[:, None]
  token = drawn if ids is None else jnp.take_along_axis(ids, drawn, -1)
  return token[:, 0].astype(jnp.int32)


def candidates(scores: Array, sampling: Sampling) -> tuple[Array, Array | None]:
  """What may be drawn of logits [B, V], at the temperature.

  Returns (scores [B, C], -inf for a token left out; ids [B, C] of these tokens). The ids are None
  where C = V and they stand in their order. With top_k, nothing else ever sees V scores.
  """
  scores, ids = scores / sampling.temperature, None
  if 0 < sampling.top_k < scores.shape[-1]:
    scores, ids = jax.lax.top_k(scores, sampling.top_k)
  if sampling.top_p < 1.0:
    ordered = -jnp.sort(-scores, axis=-1) if ids is None else scores
    probabilities = jax.nn.softmax(ordered)
    before = jnp.cumsum(probabilities, -1) - probabilities
    # The first token is always kept; then all whose predecessors have less than top_p together.
    least = jnp.where(before < sampling.top_p, ordered, jnp.inf).min(-1, keepdims=True)
    scores = jnp.where(scores < least, -jnp.inf, scores)
  if sampling.min_p > 0.0:
    least = scores.max(-1, keepdims=True) + math.log(sampling.min_p)
    scores = jnp.where(scores < least, -jnp.inf, scores)
  return scores, ids


def without_repeats(scores: Array, sequences: Array, lengths: Array, size: int) -> Array:
  """Scores [B, V] with -inf for tokens that would complete an n-gram a second time.

  sequences: int32 [B, S], of which the first lengths [B] tokens count; size: n >= 1. A row in which
  every token would keeps its scores: a small vocabulary runs out of n-grams.
  """
  if size > sequences.shape[1]:
    return scores
  rows = jnp.arange(sequences.shape[0])[:, None]
  starts = jnp.arange(sequences.shape[1])
  matches = starts + size <= lengths[:, None]
  for offset in range(size - 1):
    # The tokens that the next one would follow; before there are as many, nothing matches.
    place = lengths[:, None] - (size - 1) + offset
    given = sequences[rows, jnp.maximum(place, 0)]
    matches &= (jnp.roll(sequences, -offset, 1) == given) & (place >= 0)
  last = jnp.roll(sequences, -(size - 1), 1)
  banned = jnp.zeros(scores.shape, bool).at[rows, last].max(matches)
  allowed = jnp.where(banned, -jnp.inf, scores)
  return jnp.where(jnp.isfinite(allowed).any(-1, keepdims=True), allowed, scores)
