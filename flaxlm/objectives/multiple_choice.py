"""Multiple choice: which of several endings goes on from a text, by a trunk that reads each pair.

Each choice is read with the text as a pair, and gets one number; the probabilities are the softmax
over the choices of an item (Radford et al. 2018, section 3.3; Devlin et al. 2019, section 4.4). All
choices of an item lie in one row, each a segment of its own, so that neither the batch nor its
division changes the softmax.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxlm import terminal
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.config.transformer import TransformerConfig
from flaxlm.data.packing import Stream
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError
from flaxlm.objectives import base
from flaxlm.objectives.marks import Marks, cut_pair
from flaxlm.objectives.pooled import MIN_ITEM, Head, PooledConfig
from flaxlm.types import Array, Batch, Mean


@dataclasses.dataclass(frozen=True)
class Config(PooledConfig):
  """Multiple choice."""


class Objective(base.Objective):
  """The loss is the mean over all items of the cross-entropy of the right choice.

  A row holds whole items: a choice takes at most `data.max_length` over the number of choices.
  """

  families = ('encoder', 'decoder')
  packing = 'first_fit'
  needs = ('text', 'choices', 'label')

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    self.marks = Marks(config, tokenizer, config.objective.pair_separators)
    self.tokenizer = tokenizer
    self.max_length = config.max_length
    self.config = config.objective.resolved(config.model.name)
    choices = max(config.task.num_choices, 2)
    # A segment's positions begin at 0: only the longest choice counts for a table of them.
    self.longest = self.max_length // choices
    if config.model.position == 'learned':
      self.longest = min(self.longest, config.model.max_length)
    self._room(choices)
    keys = ('targets', 'target_positions', 'target_weights', 'example_weights', 'example_ids')
    self.streams = {
      'inputs': Stream(self.max_length, self.marks.keys, prefix=''),
      'choices': Stream(
        max(choices, self.max_length // MIN_ITEM),
        (*keys, 'choice_ids'),
        offset={'target_positions': 'inputs'},
      ),
    }

  def items(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tokenised examples: a pair of texts for each choice, cut to fit; the right one; number."""
    texts = self.tokenizer.encode_batch([example['text'] for example in examples])
    flat = [choice for example in examples for choice in example['choices']]
    endings = iter(self.tokenizer.encode_batch(flat))
    items, cut = [], 0
    for number, (text, example) in enumerate(zip(texts, examples, strict=True)):
      pairs = []
      # An imported run knows no number of choices.
      room = self._room(len(example['choices']))
      for _ in example['choices']:
        ending = next(endings)
        a, b = cut_pair(len(text), len(ending), room)
        cut += a + b < len(text) + len(ending)
        # Of the text, what stands right before the ending is kept.
        pairs.append((text[len(text) - a :], ending[:b]))
      items.append({'pairs': pairs, 'label': example.get('label'), 'id': number})
    choices = sum(len(example['choices']) for example in examples)
    terminal.cut(cut, choices, 'choices do not fit config.data.max_length')
    return items

  def _room(self, choices: int) -> int:
    """Tokens of a text and a choice, where so many choices lie in a row; UserError for too many."""
    marks = self.marks.count(pair=True)
    longest = min(self.longest, self.max_length // choices)
    if longest <= marks + 1:
      raise UserError(
        f'config.data.max_length: rows of {self.max_length} tokens have no room for {choices} '
        'choices, which lie in one row'
      )
    return longest - marks

  def lengths(self, item: Mapping[str, Any]) -> dict[str, int]:
    tokens = sum(len(a) + len(b) + self.marks.count(pair=True) for a, b in item['pairs'])
    return {'inputs': tokens, 'choices': len(item['pairs'])}

  def features(
    self, item: Mapping[str, Any], rng: np.random.Generator
  ) -> list[dict[str, np.ndarray]]:
    """Of each choice, a segment: inputs [n] and the choice's keys [1]."""
    one = lambda value, dtype=np.int32: np.array([value], dtype)
    segments = []
    for number, pair in enumerate(item['pairs']):
      tokens = dict(self.marks.features(*pair))
      place = len(tokens['inputs']) - 1 if self.config.pooling == 'last' else 0
      segments.append(
        tokens
        | {
          'targets': one(number == item['label']),
          'target_positions': one(place),
          'target_weights': one(item['label'] is not None, np.float32),
          'example_weights': one(1.0, np.float32),
          'example_ids': one(item['id']),
          'choice_ids': one(number),
        }
      )
    return segments

  def head(self, model: TransformerConfig) -> nn.Module:
    return Head(model, 1, self.config.pooling, self.marks.family, self.config.pooler)

  def weights(self, batch: Batch) -> dict[str, Array]:
    return {'loss': (batch['targets'] * batch['target_weights']).sum()}

  def losses(self, outputs, batch: Batch) -> tuple[dict[str, Array], dict[str, Mean]]:
    """Summed loss of each term, and the metrics; `accuracy`: the right choice is the likeliest."""
    log_p, best = _log_softmax(outputs[..., 0], batch)
    right = batch['targets'] * batch['target_weights']
    loss = Mean(-(log_p * right).sum(), right.sum())
    return {'loss': loss.total}, {'loss': loss, 'accuracy': Mean((best * right).sum(), right.sum())}

  def predict(self, outputs: Array, batch: Batch) -> dict[str, Array]:
    """log_probabilities, example_ids, choice_ids [B, T] of choices, weights [B, T] (0: none)."""
    return {
      'log_probabilities': _log_softmax(outputs[..., 0], batch)[0],
      'example_ids': batch['example_ids'],
      'choice_ids': batch['choice_ids'],
      'weights': batch['example_weights'],
    }


def _log_softmax(scores: Array, batch: Batch) -> tuple[Array, Array]:
  """(log-softmax over the choices of an item, whether the choice is its likeliest) [B, T]."""
  ids, real = batch['example_ids'], batch['example_weights'] > 0
  same = (ids[:, :, None] == ids[:, None]) & real[:, None]
  # An empty slot is alone with itself, which keeps its gradient finite.
  same |= jnp.eye(ids.shape[1], dtype=bool)
  others = jnp.where(same, scores[:, None], -jnp.inf)
  return scores - jax.nn.logsumexp(others, -1), scores >= others.max(-1)
