"""Extractive question answering: where in a text an answer begins and ends.

The trunk reads question and text as a pair; two numbers a token say how well the answer begins and
ends there (Devlin et al. 2019, section 4.2). A text that does not fit is read in windows. Of a
window without the answer, the target is its [CLS] (a decoder's last token), which stands for no
answer (section 4.3).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxlm import terminal
from flaxlm.config.field import field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.config.transformer import TransformerConfig
from flaxlm.data.packing import Stream
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError
from flaxlm.layers import initializers
from flaxlm.layers.dense import Dense
from flaxlm.models.heads import transform
from flaxlm.objectives import base
from flaxlm.objectives.marks import Marks, separators_field
from flaxlm.objectives.pooled import EachTokenConfig
from flaxlm.types import Array, Batch, Mean

# Shortest window that is worth packing, in tokens: it bounds how many a row can hold.
MIN_ITEM = 32
IMPOSSIBLE = -1e30
NO_CHARACTER = -1


@dataclasses.dataclass(frozen=True)
class Config(EachTokenConfig):
  """Extractive question answering."""

  doc_stride: int = field(
    128,
    'tokens from the beginning of a window of the text to that of the next; half the room for the '
    'text where that is no more',
    low=1,
  )
  max_question_length: int = field(64, 'tokens of a question; longer ones are cut', low=1)
  max_answer_length: int = field(30, 'tokens of a predicted answer', low=1)
  n_best: int = field(20, 'answers kept of each window', low=1)
  pair_separators: int = separators_field()


class Objective(base.Objective):
  """The loss is the mean over all windows of the mean cross-entropy of beginning and end."""

  families = ('encoder', 'decoder')
  packing = 'first_fit'
  needs = ('text', 'question', 'answers')

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    self.config = config.objective
    self.tokenizer = tokenizer
    self.marks = Marks(config, tokenizer, self.config.pair_separators)
    self.max_length = config.max_length
    longest = self.max_length - self.marks.count(pair=True) - 1
    if self.config.max_question_length > longest:
      raise UserError(
        f'config.objective.max_question_length: rows of {self.max_length} tokens leave no room for '
        f'the text; the nearest valid value is {longest}'
      )
    places = ('start_targets', 'end_targets', 'null_positions')
    keys = (*places, 'target_weights', 'example_weights', 'example_ids')
    self.streams = {
      'inputs': Stream(self.max_length, (*self.marks.keys, 'char_starts', 'char_ends'), prefix=''),
      'targets': Stream(
        max(1, self.max_length // MIN_ITEM), keys, offset=dict.fromkeys(places, 'inputs')
      ),
    }

  def items(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Windows: question, text, its characters, first and last token of the answer, example."""
    questions = self.tokenizer.encode_batch([example['question'] for example in examples])
    longest, cut = self.config.max_question_length, 0
    items, seen = [], {}
    for number, (question, example) in enumerate(zip(questions, examples, strict=True)):
      cut += len(question) > longest
      question = question[:longest]
      if example['text'] not in seen:  # Many questions stand on one text.
        seen[example['text']] = self._read(example['text'])
      ids, characters = seen[example['text']]
      answers = example.get('answers')
      span = token_span(characters, answers[0]) if answers else None
      room = self.max_length - self.marks.count(pair=True) - len(question)
      for start, stop in windows(len(ids), room, self.config.doc_stride):
        inside = span is not None and start <= span[0] and span[1] < stop
        items.append(
          {
            'question': question,
            'text': ids[start:stop],
            'characters': characters[start:stop],
            'span': (span[0] - start, span[1] - start) if inside else None,
            'labelled': answers is not None,
            'id': number,
          }
        )
    terminal.cut(cut, len(examples), 'questions are longer than objective.max_question_length')
    return items

  def _read(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n] and the characters each covers [n, 2]; none of one that is all white space.

    No answer begins or ends there.
    """
    ids, offsets = self.tokenizer.encode_with_offsets(text)
    characters = [(start, end if text[start:end].strip() else start) for start, end in offsets]
    return ids, np.array(characters, np.int32).reshape(-1, 2)

  def lengths(self, item: Mapping[str, Any]) -> dict[str, int]:
    tokens = len(item['question']) + len(item['text']) + self.marks.count(pair=True)
    return {'inputs': tokens, 'targets': 1}

  def features(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """inputs [n], the characters [n] that its tokens of the text cover, the targets' keys [1]."""
    features = dict(self.marks.features(item['question'], item['text']))
    n = len(features['inputs'])
    first = self.marks.second_start(item['question'])
    starts, ends = np.full(n, NO_CHARACTER), np.full(n, NO_CHARACTER)
    starts[first : first + len(item['text'])] = item['characters'][:, 0]
    ends[first : first + len(item['text'])] = item['characters'][:, 1]
    null = n - 1 if self.marks.at_end else 0
    start, end = (null, null) if item['span'] is None else (first + x for x in item['span'])
    one = lambda value, dtype=np.int32: np.array([value], dtype)
    return features | {
      'char_starts': starts,
      'char_ends': ends,
      'start_targets': one(start),
      'end_targets': one(end),
      'null_positions': one(null),
      'target_weights': one(item['labelled'], np.float32),
      'example_weights': one(1.0, np.float32),
      'example_ids': one(item['id']),
    }

  def head(self, model: TransformerConfig) -> nn.Module:
    return Head(model, self.config.pooler)

  def losses(self, outputs, batch: Batch) -> tuple[dict[str, Array], dict[str, Mean]]:
    """Summed loss of each term, and the metrics; `accuracy`: both ends of a window are right."""
    weights = batch['target_weights']
    # Over the tokens of its own window only, however many share the row: [B, T, L, 2].
    log_p = jax.nn.log_softmax(_of_windows(outputs, batch, _members(batch)), axis=2)
    targets = jnp.stack([batch['start_targets'], batch['end_targets']], -1)
    nll = -jnp.take_along_axis(log_p, targets[:, :, None], axis=2)[:, :, 0]
    loss = Mean((nll.mean(-1) * weights).sum(), weights.sum())
    right = (log_p.argmax(2) == targets).all(-1) * weights
    return {'loss': loss.total}, {'loss': loss, 'accuracy': Mean(right.sum(), weights.sum())}

  def predict(self, outputs: Array, batch: Batch) -> dict[str, Array]:
    """Of each window [B, T]: its N best answers, and no answer.

    Returns:
      scores, starts, ends [B, T, N]: sum of the two numbers, and characters of the text; scores of
      IMPOSSIBLE are no answers. null_scores, example_ids, weights [B, T].
    """
    rows = jnp.arange(outputs.shape[0])[:, None]
    text = _members(batch) & (batch['char_ends'] > batch['char_starts'])[:, None]
    allowed = _of_windows(outputs, batch, text)
    n = min(self.config.n_best, self.max_length)
    (start, first), (end, last) = (jax.lax.top_k(allowed[..., i], n) for i in (0, 1))
    length = last[..., None, :] - first[..., None] + 1
    pairs = start[..., None] + end[..., None, :]
    fits = (length > 0) & (length <= self.config.max_answer_length) & (pairs > IMPOSSIBLE / 2)
    pairs = jnp.where(fits, pairs, IMPOSSIBLE)
    scores, best = jax.lax.top_k(pairs.reshape(*pairs.shape[:2], -1), n)
    place = lambda index, of: jnp.take_along_axis(of, index, -1)
    characters = lambda key, at: jnp.take_along_axis(batch[key][:, None], at, -1)
    return {
      'scores': scores,
      'starts': characters('char_starts', place(best // n, first)),
      'ends': characters('char_ends', place(best % n, last)),
      'null_scores': outputs[rows, batch['null_positions']].sum(-1),
      'example_ids': batch['example_ids'],
      'weights': batch['example_weights'],
    }


class Head(nn.Module):
  """Two numbers for each token, of beginning and end: float32 [B, L, 2]."""

  config: TransformerConfig
  pooler: str

  @nn.compact
  def __call__(self, output, batch, deterministic):
    c = self.config
    x = transform(c, output.hidden) if self.pooler == 'transform' else output.hidden
    init = initializers.kernel(c, c.emb_dim)
    sizes, axes = ((c.emb_dim,), (2,)), (('embed',), ('classes',))
    return Dense(*sizes, *axes, init, True, jnp.float32, name='span')(x)


def _members(batch: Batch) -> Array:
  """bool [B, T, L]: which tokens belong to the window of a slot."""
  segment_ids = batch['segment_ids']
  wanted = jnp.take_along_axis(segment_ids, batch['null_positions'], 1)
  return segment_ids[:, None] == wanted[..., None]


def _of_windows(outputs: Array, batch: Batch, mask: Array) -> Array:
  """[B, L, 2] -> [B, T, L, 2], IMPOSSIBLE where the mask [B, T, L] is False."""
  return jnp.where(mask[..., None], outputs[:, None], IMPOSSIBLE)


def windows(length: int, room: int, stride: int) -> list[tuple[int, int]]:
  """[start, stop) of windows over so many tokens, each at most `room` long; one for no tokens.

  Where the stride would leave no overlap, in which an answer may lie, it is half the room.
  """
  found, start = [(0, min(length, room))], 0
  stride = stride if stride < room else max(room // 2, 1)
  while start + room < length:
    start += stride
    found.append((start, min(length, start + room)))
  return found


def token_span(characters: np.ndarray, answer: Mapping[str, Any]) -> tuple[int, int] | None:
  """First and last token that cover an answer's characters, or None if none does.

  characters: int [n, 2], where each token begins and ends.
  """
  start, end = answer['start'], answer['start'] + len(answer['text'])
  inside = (characters[:, 1] > start) & (characters[:, 0] < end)
  found = np.flatnonzero(inside & (characters[:, 1] > characters[:, 0]))
  return (int(found[0]), int(found[-1])) if len(found) else None
