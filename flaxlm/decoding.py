"""Text generation: prefill, then one token at a time from a cache of keys and values.

Prompts are padded on the right, and a token's slot in the cache is its position, so that the output
of a row depends neither on the padding nor on the other rows of its batch.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.config.transformer import TransformerConfig
from flaxlm.layers.attention import Cache, soft_cap
from flaxlm.types import Array, VocabOutput

# Prompts are padded to a multiple of this, so that few shapes are compiled.
BUCKET = 32


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is chosen. temperature 0: always the likeliest (greedy).

  top_k: among the k likeliest, 0 for all; top_p: among the likeliest that together have
  probability p (Holtzman et al. 2020).
  """

  max_new_tokens: int = 100
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0


def logits(output: VocabOutput) -> Array:
  """float32 [..., vocab_size] of what a vocabulary head returns."""
  table = output.table[: output.vocab_size].astype(output.hidden.dtype)
  result = jnp.dot(output.hidden, table.T, preferred_element_type=jnp.float32)
  if output.bias is not None:
    result = result + output.bias[: output.vocab_size]
  return soft_cap(result, output.softcap)


def filtered(scores: Array, sampling: Sampling) -> Array:
  """Logits [..., V] at the temperature, with -inf where top_k and top_p leave a token out."""
  scores = scores / sampling.temperature
  if 0 < sampling.top_k < scores.shape[-1]:
    kth = jax.lax.top_k(scores, sampling.top_k)[0][..., -1:]
    scores = jnp.where(scores < kth, -jnp.inf, scores)
  if sampling.top_p < 1.0:
    ordered = -jnp.sort(-scores, axis=-1)
    before = jnp.cumsum(jax.nn.softmax(ordered), -1) - jax.nn.softmax(ordered)
    # The first token is always kept; then all whose predecessors have less than top_p together.
    least = jnp.where(before < sampling.top_p, ordered, jnp.inf).min(-1, keepdims=True)
    scores = jnp.where(scores < least, -jnp.inf, scores)
  return scores


def choose(scores: Array, sampling: Sampling, keys: Array) -> Array:
  """Logits [B, V] and one key a row -> int32 [B]."""
  if sampling.temperature == 0.0:
    return scores.argmax(-1).astype(jnp.int32)
  pick = jax.vmap(lambda key, row: jax.random.categorical(key, row))
  return pick(keys, filtered(scores, sampling)).astype(jnp.int32)


def generate(
  model: Any,
  params: Any,
  prompts: Sequence[np.ndarray],
  sampling: Sampling,
  eos_id: int | None,
  encoder_inputs: Sequence[np.ndarray] | None = None,
  prefix: bool = False,
) -> list[np.ndarray]:
  """Continues each prompt.

  Args:
    model: a Model whose head returns a VocabOutput.
    params: its parameters.
    prompts: token ids [n >= 1] each; of the decoder, where there are two stacks.
    sampling: how tokens are chosen. Row i draws from fold_in(key(seed), i), whatever the others do.
    eos_id: token that ends a row; None: only the length does.
    encoder_inputs: token ids [m >= 1] for each row, of an encoder-decoder.
    prefix: the tokens of a prompt see each other in both directions (prefix language models).

  Returns:
    New token ids of each row, EOS not included. A row that outgrows model.max_length goes on from
    the last half of it.
  """
  config: TransformerConfig = model.trunk.config
  sequences = [np.asarray(prompt, np.int32) for prompt in prompts]
  results = [np.zeros(0, np.int32) for _ in prompts]
  left = np.full(len(prompts), sampling.max_new_tokens)
  while left.any():
    # Rows of one length overflow together; rows that fit need not be told apart.
    contexts = [_context(s, config.max_length) for s in sequences]
    room = [min(n, config.max_length - len(c)) for c, n in zip(contexts, left, strict=True)]
    crowded = [len(c) + n > config.max_length for c, n in zip(contexts, left, strict=True)]
    first = int(np.flatnonzero(left)[0])
    together = lambda i: (crowded[i], len(contexts[i]) if crowded[i] else 0)  # noqa: B023
    rows = [i for i in np.flatnonzero(left) if together(i) == together(first)]
    steps = max(room[i] for i in rows)
    sources = None if encoder_inputs is None else [encoder_inputs[i] for i in rows]
    keys = _row_keys(sampling.seed, rows, [len(results[i]) for i in rows])
    new = _run(
      model, params, [contexts[i] for i in rows], sources, keys, steps, sampling, eos_id, prefix
    )
    for i, tokens in zip(rows, new, strict=True):
      tokens = tokens[: left[i]]
      ends = np.flatnonzero(tokens == eos_id) if eos_id is not None else []
      left[i] = 0 if len(ends) else left[i] - len(tokens)
      tokens = tokens[: ends[0]] if len(ends) else tokens
      results[i] = np.concatenate([results[i], tokens])
      sequences[i] = np.concatenate([sequences[i], tokens])
  return results


def _context(sequence: np.ndarray, longest: int) -> np.ndarray:
  """What is read of a sequence: all of it, or its end if new tokens would not fit behind it."""
  return sequence if len(sequence) < longest else sequence[-(longest // 2) :]


def _row_keys(seed: int, rows: Sequence[int], drawn: Sequence[int]) -> Array:
  fold = lambda row, count: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), count)
  return jax.vmap(fold)(jnp.asarray(rows), jnp.asarray(drawn))


def _run(model, params, contexts, sources, keys, steps, sampling, eos_id, prefix) -> np.ndarray:
  """`steps` new tokens for each row: int32 [B, steps]; undefined after EOS."""
  config = model.trunk.config
  prompts, lengths = _padded(contexts, min(config.max_length, _bucket(max(map(len, contexts)))))
  slots = max(prompts.shape[1], min(config.max_length, _bucket(int(lengths.max()) + steps)))
  memory, segments = None, None
  if sources is not None:
    inputs, sizes = _padded(sources, _bucket(max(map(len, sources))))
    segments = (np.arange(inputs.shape[1]) < sizes[:, None]).astype(np.int32)
    memory = _encode(model, params, inputs, segments)
  sampling = dataclasses.replace(sampling, max_new_tokens=0, seed=0)  # not of the program
  tokens = _decode(
    model, sampling, slots, eos_id, prefix, params, prompts, lengths, keys, steps, memory, segments
  )
  return np.asarray(tokens)[:, :steps]


def _bucket(length: int) -> int:
  return -(-length // BUCKET) * BUCKET


def _padded(sequences: Sequence[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
  """(int32 [B, width], lengths [B])"""
  padded = np.zeros((len(sequences), width), np.int32)
  for row, sequence in zip(padded, sequences, strict=True):
    row[: len(sequence)] = sequence
  return padded, np.array([len(sequence) for sequence in sequences], np.int32)


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, params, inputs, segment_ids) -> Array:
  """Encoder output [B, L, D]."""
  positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
  batch = {
    'encoder_inputs': inputs,
    'encoder_positions': positions,
    'encoder_segment_ids': segment_ids,
  }
  start = jnp.zeros((inputs.shape[0], 1), jnp.int32)
  batch |= {key: start for key in ('decoder_inputs', 'decoder_positions', 'decoder_segment_ids')}
  return model.apply({'params': params}, batch)[1].encoder


def empty_cache(config: TransformerConfig, layers: int, batch: int, slots: int) -> Cache:
  """Zeros for the keys and values of `layers` layers: [layers, B, slots, Hkv, K] each."""
  shape = (layers, batch, slots, config.kv_heads, config.head_size)
  return Cache(jnp.zeros(shape, config.precision), jnp.zeros(shape, config.precision))


def cached_call(
  model, params, inputs, positions, cache, memory, segment_ids, prefix=None
) -> tuple[Any, Cache]:
  """(VocabOutput of new tokens [B, n] at `positions`, the cache with them).

  prefix: marks [B, n] of new tokens that all of them see, or None.
  """
  if memory is None:
    batch = {'inputs': inputs, 'positions': positions}
    batch |= {} if prefix is None else {'prefix': prefix}
    outputs, output = model.apply({'params': params}, batch, cache=cache)
    return outputs, output.cache
  batch = {
    'decoder_inputs': inputs,
    'decoder_positions': positions,
    'decoder_segment_ids': jnp.ones_like(inputs),
    'encoder_segment_ids': segment_ids,
  }
  outputs, output = model.apply({'params': params}, batch, cache=cache, memory=memory)
  return outputs, output.cache


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _decode(
  model, sampling, slots, eos_id, prefix, params, prompts, lengths, keys, steps, memory, segment_ids
) -> Array:
  """Prefills the prompts [B, P] and adds up to `steps` tokens to each row: int32 [B, slots]."""
  config = model.trunk.config
  layers = config.num_layers if memory is None else config.decoder_layers
  rows = jnp.arange(prompts.shape[0])
  cache = empty_cache(config, layers, prompts.shape[0], slots)
  positions = jnp.broadcast_to(jnp.arange(prompts.shape[1]), prompts.shape)
  marks = (positions < lengths[:, None]).astype(jnp.int32) if prefix else None
  output, cache = cached_call(model, params, prompts, positions, cache, memory, segment_ids, marks)
  last = output.replace(hidden=output.hidden[rows, lengths - 1])
  draw = lambda scores, t: choose(
    scores, sampling, jax.vmap(jax.random.fold_in, (0, None))(keys, t)
  )
  token = draw(logits(last), 0)
  tokens = jnp.zeros((prompts.shape[0], slots), jnp.int32).at[:, 0].set(token)
  ended = lambda token: jnp.zeros_like(token, bool) if eos_id is None else token == eos_id

  def going_on(state):
    t, _, _, done, _ = state
    return (t < steps) & ~done.all()

  def step(state):
    t, token, tokens, done, cache = state
    place = jnp.minimum(lengths + t - 1, slots - 1)[:, None]
    output, cache = cached_call(model, params, token[:, None], place, cache, memory, segment_ids)
    token = draw(logits(output.replace(hidden=output.hidden[:, 0])), t)
    return t + 1, token, tokens.at[:, t].set(token), done | ended(token), cache

  state = jnp.ones((), jnp.int32), token, tokens, ended(token), cache
  return jax.lax.while_loop(going_on, step, state)[2]
