"""Text generation: prompts are read at once, then tokens are drawn one by one.

Both are compiled once for each bucket of shapes. The loop over tokens runs on the device, and the
host sees tokens when the loop ends or, where it looks for stop strings, every LOOK tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.decoding import cache as caches
from flaxlm.decoding.cache import Prompts, Reader
from flaxlm.decoding.sampling import Sampling, choose, without_repeats
from flaxlm.models.model import Model
from flaxlm.models.scores import logits
from flaxlm.objectives.base import Prompt
from flaxlm.types import Array

# New tokens between two looks for stop strings.
LOOK = 16
# (row, its new tokens) -> how many of them to keep, or None to go on.
Stop = Callable[[int, np.ndarray], int | None]


@dataclasses.dataclass(frozen=True)
class Continuation:
  """New token ids [n] of a row, EOS not included, and why it ended: 'eos', 'stop' or 'length'."""

  tokens: np.ndarray
  finish: str


@flax.struct.dataclass
class _State:
  """Rows on their way. sequences: int32 [B, S] of prompt and new tokens; lengths: [B], of both."""

  count: Array
  sequences: Array
  lengths: Array
  done: Array
  keys: Array
  source_segment_ids: Array | None
  cache: tuple[Any, ...]


@dataclasses.dataclass
class _Row:
  """A row on the host. read: what the model reads next; new: what it has written."""

  prompt: Prompt
  draw: tuple[int, int]
  read: np.ndarray
  new: np.ndarray
  finish: str = ''


def generate(
  reader: Reader,
  prompts: Sequence[Prompt],
  sampling: Sampling,
  draws: Sequence[tuple[int, int]] | None = None,
  stop: Stop | None = None,
) -> list[Continuation]:
  """Continues each prompt.

  Args:
    reader: a model whose head returns a VocabOutput.
    prompts: of one objective. A row that outgrows reader.longest goes on from its last half.
    sampling: how tokens are chosen.
    draws: (seed, number) of each row, on which alone its random numbers depend, whatever the other
      rows do; (sampling.seed, row) by default.
    stop: looks at the new tokens of a row now and then.
  """
  draws = draws or [(sampling.seed, i) for i in range(len(prompts))]
  rows = [
    _Row(prompt, draw, np.asarray(prompt.inputs, np.int32), np.zeros(0, np.int32))
    for prompt, draw in zip(prompts, draws, strict=True)
  ]
  longest = reader.longest
  while any(not row.finish for row in rows):
    chosen, steps = _group(rows, sampling.max_new_tokens, longest)
    _run(reader, [rows[i] for i in chosen], steps, sampling, stop and _of(stop, chosen))
  return [Continuation(row.new, row.finish) for row in rows]


def _group(rows: Sequence[_Row], most: int, longest: int) -> tuple[list[int], int]:
  """Rows that can go on together, and the new tokens that the longest of them wants.

  Rows of one length overflow together; rows that fit need not be told apart.
  """
  groups: dict[int, list[int]] = {}
  room = {}
  for i, row in enumerate(rows):
    if row.finish:
      continue
    if len(row.read) >= longest:
      row.read = row.read[-(longest // 2) :]
    wanted = most - len(row.new)
    room[i] = min(wanted, longest - len(row.read))
    groups.setdefault(len(row.read) if room[i] < wanted else 0, []).append(i)
  chosen = next(iter(groups.values()))
  return chosen, max(room[i] for i in chosen)


def _of(stop: Stop, chosen: Sequence[int]) -> Stop:
  return lambda row, tokens: stop(chosen[row], tokens)


def _run(
  reader: Reader, rows: Sequence[_Row], steps: int, sampling: Sampling, stop: Stop | None
) -> None:
  """Adds up to `steps` new tokens to each row, and says of those that end why."""
  state = _start(reader, rows, steps, sampling)
  eos_id = rows[0].prompt.eos_id
  static = reader.model, _static(sampling), eos_id
  until = 1
  while until < steps:
    until = min(until + LOOK, steps) if stop else steps
    state = _advance(*static, reader.params, state, jnp.int32(until))
    if stop and until < steps:
      done = np.array(state.done)
      for i, tokens in enumerate(_new(state, rows, until)):
        done[i] |= stop(i, np.concatenate([rows[i].new, tokens])) is not None
      if done.all():
        break
      state = state.replace(done=jnp.asarray(done))
  for i, (row, tokens) in enumerate(zip(rows, _new(state, rows, steps), strict=True)):
    tokens = tokens[: sampling.max_new_tokens - len(row.new)]
    ends = np.flatnonzero(tokens == eos_id) if eos_id is not None else tokens[:0]
    tokens = tokens[: ends[0]] if len(ends) else tokens
    row.read, row.new = np.concatenate([row.read, tokens]), np.concatenate([row.new, tokens])
    if stop and (kept := stop(i, row.new)) is not None:
      row.new, row.finish = row.new[:kept], 'stop'
    elif len(ends):
      row.finish = 'eos'
    elif len(row.new) == sampling.max_new_tokens:
      row.finish = 'length'


def _new(state: _State, rows: Sequence[_Row], steps: int) -> list[np.ndarray]:
  """The tokens behind what each row has read, of rows that are done with some of EOS's padding."""
  sequences, lengths = np.asarray(state.sequences), np.asarray(state.lengths)
  ends = [min(n, len(row.read) + steps) for row, n in zip(rows, lengths, strict=False)]
  return [s[len(row.read) : end] for s, row, end in zip(sequences, rows, ends, strict=False)]


def _static(sampling: Sampling) -> Sampling:
  """What of it the program depends on."""
  return dataclasses.replace(sampling, max_new_tokens=0, seed=0)


def _start(reader: Reader, rows: Sequence[_Row], steps: int, sampling: Sampling) -> _State:
  """The state after the first new token. Rows are added up to a power of two; they are done."""
  prompts = [row.prompt for row in rows]
  batch = caches.prepare(reader, prompts, [row.read for row in rows], steps)
  counts = np.zeros((len(batch.lengths), 3), np.int64)
  counts[: len(rows)] = [[*row.draw, len(row.new)] for row in rows]
  done = np.arange(len(counts)) >= len(rows)
  return _first(reader.model, _static(sampling), reader.params, batch, counts, done)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _first(
  model: Model, sampling: Sampling, params: Any, prompts: Prompts, counts: Array, done: Array
) -> _State:
  """Reads the prompts; counts [B, 3]: seed, number, tokens drawn before, of each row."""
  output, cache = caches.prefill(model, params, prompts)
  key = lambda c: jax.random.fold_in(jax.random.fold_in(jax.random.key(c[0]), c[1]), c[2])
  segments = None if prompts.source is None else prompts.source.segment_ids
  keys, sequences = jax.vmap(key)(counts), prompts.sequences()
  state = _State(jnp.int32(0), sequences, prompts.lengths, done, keys, segments, cache)
  return _drawn(state, output, sampling, prompts.eos_id)


def _drawn(state: _State, output: Any, sampling: Sampling, eos_id: int | None) -> _State:
  """With one more token in each row that is not done, from the output [B, D] at its last."""
  scores = logits(output)
  if sampling.no_repeat_ngram:
    size = sampling.no_repeat_ngram
    scores = without_repeats(scores, state.sequences, state.lengths, size)
  keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.count)
  token = choose(scores, sampling, keys)
  rows = jnp.arange(len(token))
  # A row that is done changes no more.
  place = jnp.minimum(state.lengths, state.sequences.shape[1] - 1)
  token = jnp.where(state.done, state.sequences[rows, place], token)
  lengths = state.lengths + ~state.done
  full = lengths >= state.sequences.shape[1]
  return state.replace(
    count=state.count + 1,
    sequences=state.sequences.at[rows, place].set(token),
    lengths=lengths,
    done=state.done | full | (False if eos_id is None else token == eos_id),
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _advance(model, sampling, eos_id, params, state, until) -> _State:
  """Goes on until each row has `until` new tokens or is done. The state that goes in is used up."""

  def going_on(state):
    return (state.count < until) & ~state.done.all()

  def step(state):
    place = state.lengths[:, None] - 1
    token = jnp.take_along_axis(state.sequences, place, 1)
    output, cache = caches.call(model, params, token, place, state.cache, state.source_segment_ids)
    output = output.replace(hidden=output.hidden[:, 0])
    return _drawn(state.replace(cache=cache), output, sampling, eos_id)

  return jax.lax.while_loop(going_on, step, state)
