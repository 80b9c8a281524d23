"""Tagging: a label for each word, read at one of its pieces (Devlin et al. 2019, section 5.3).

A sentence that does not fit a row is cut between words, and every word is in one part.
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
from flaxlm.models.heads import ClassHead, gather
from flaxlm.objectives import base, losses
from flaxlm.objectives.marks import Marks, decoder_field
from flaxlm.objectives.pooled import EachTokenConfig
from flaxlm.types import Array, Batch, Mean


@dataclasses.dataclass(frozen=True)
class Config(EachTokenConfig):
  """Tagging."""

  piece: str = field(
    'first',
    'piece of a word that is read; a decoder has seen the whole word only at its `last`',
    choices=('first', 'last'),
  )
  decoder_marks: str = decoder_field()


class Objective(base.Objective):
  """The loss is the mean over all words."""

  families = ('encoder', 'decoder')
  packing = 'first_fit'
  needs = ('text', 'words', 'label')

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    self.config = config.objective
    self.marks = Marks(config, tokenizer, ends=self.config.decoder_marks)
    self.tokenizer = tokenizer
    self.labels = tuple(config.task.labels)
    self.room = config.max_length - self.marks.count(pair=False)
    keys = ('targets', 'target_positions', 'target_weights', 'example_weights', 'example_ids')
    self.streams = {
      'inputs': Stream(config.max_length, self.marks.keys, prefix=''),
      'words': Stream(self.room, (*keys, 'word_ids'), offset={'target_positions': 'inputs'}),
    }

  def items(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Parts of sentences: tokens, position of each word's piece, labels, words, sentence."""
    items, cut = [], 0
    for number, example in enumerate(examples):
      pieces = word_pieces(self.tokenizer, example['words'])
      cut += sum(len(ids) > self.room for ids, _ in pieces)
      labels = [self.labels.index(tag) for tag in example.get('label', ())]
      for start, stop in parts([len(ids) for ids, _ in pieces], self.room):
        part = pieces[start:stop]
        tokens = np.concatenate([ids[: self.room] for ids, _ in part]).astype(np.int32)
        ends = np.cumsum([min(len(ids), self.room) for ids, _ in part])
        begins = np.concatenate([[0], ends[:-1]])
        firsts = [begin + first for begin, (_, first) in zip(begins, part, strict=True)]
        items.append(
          {
            'tokens': tokens,
            'positions': np.array(firsts) if self.config.piece == 'first' else ends - 1,
            'labels': labels[start:stop] or [0] * (stop - start),
            'labelled': bool(labels),
            'words': np.arange(start, stop),
            'id': number,
          }
        )
    words = sum(len(example['words']) for example in examples)
    terminal.cut(cut, words, 'words do not fit config.data.max_length')
    return items

  def lengths(self, item: Mapping[str, Any]) -> dict[str, int]:
    inputs = len(item['tokens']) + self.marks.count(pair=False)
    return {'inputs': inputs, 'words': len(item['words'])}

  def features(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """inputs [n], and of each word the label's keys [words]."""
    words = len(item['words'])
    return dict(self.marks.features(item['tokens'])) | {
      'targets': np.array(item['labels'], np.int32),
      'target_positions': item['positions'] + self.marks.first_start(),
      'target_weights': np.full(words, item['labelled'], np.float32),
      'example_weights': np.ones(words, np.float32),
      'example_ids': np.full(words, item['id'], np.int32),
      'word_ids': item['words'],
    }

  def head(self, model: TransformerConfig) -> nn.Module:
    return Head(model, len(self.labels), self.config.pooler)

  def losses(self, outputs, batch: Batch) -> tuple[dict[str, Array], dict[str, Mean]]:
    """Summed loss of each term, and the metrics."""
    loss, accuracy = losses.class_metrics(outputs, batch['targets'], batch['target_weights'])
    return {'loss': loss.total}, {'loss': loss, 'accuracy': accuracy}

  def predict(self, outputs: Array, batch: Batch) -> dict[str, Array]:
    """predicted, example_ids, word_ids [B, T], and weights [B, T] (0: no word)."""
    return {
      'predicted': outputs.argmax(-1).astype(jnp.int32),
      'example_ids': batch['example_ids'],
      'word_ids': batch['word_ids'],
      'weights': batch['example_weights'],
    }


class Head(nn.Module):
  """A linear map at each word's piece, behind `pooler`: float32 [B, T, classes]."""

  config: TransformerConfig
  classes: int
  pooler: str

  @nn.compact
  def __call__(self, output, batch, deterministic):
    hidden: jax.Array = gather(output.hidden, batch['target_positions'])
    head = ClassHead(self.config, self.classes, self.pooler, name='classes')
    return head(hidden, deterministic)


def word_pieces(tokenizer: Tokenizer, words: Sequence[str]) -> list[tuple[list[int], int]]:
  """(token ids of a word, which of them is its first piece), for each word of a sentence.

  The sentence is encoded as text, with spaces between words. A piece that is all spaces belongs to
  the word behind it, and is never its first; a word that the tokenizer drops is an unknown token.
  """
  text = ' '.join(words)
  ends = np.cumsum([len(word) + 1 for word in words]) - 1
  pieces: list[tuple[list[int], int]] = [([], -1) for _ in words]
  word = 0
  for id, (start, stop) in zip(*tokenizer.encode_with_offsets(text), strict=True):
    while stop > start and ends[word] <= start and word + 1 < len(words):
      word += 1
    ids, first = pieces[word]
    if first < 0 and text[start:stop].strip():
      pieces[word] = ids, len(ids)
    ids.append(int(id))
  for word, (ids, first) in enumerate(pieces):
    if first < 0:
      pieces[word] = [*ids, tokenizer.unk_id], len(ids)
  return pieces


def parts(lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
  """[start, stop) of runs of words that fit `room` tokens; a longer word is alone."""
  found, start, taken = [], 0, 0
  for place, length in enumerate(lengths):
    if place > start and taken + length > room:
      found.append((start, place))
      start, taken = place, 0
    taken += length
  return [*found, (start, len(lengths))]
