"""Classification of a text, by a trunk of any family.

Encoder: [CLS] text [SEP], read at [CLS] (or at the last token, or as the mean of all). Decoder:
BOS text EOS, read at EOS. Encoder-decoder: the encoder reads text EOS, the decoder gets BOS alone
and is read there.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxlm.config.field import Named, field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.config.transformer import TransformerConfig
from flaxlm.data.packing import Stream
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError
from flaxlm.models.family import family_of
from flaxlm.models.heads import ClassHead, gather
from flaxlm.objectives import losses
from flaxlm.types import Array, Batch, Mean

# Shortest text that is worth packing, in tokens: it bounds how many labels a row can hold.
MIN_ITEM = 4


@dataclasses.dataclass(frozen=True)
class Config(Named):
  """Classification."""

  pooling: str = field(
    'auto',
    'what stands for the text: `first`, `last` or `mean` of its tokens; `auto`: first of an '
    'encoder, last of a decoder, the start token of an encoder-decoder',
    choices=('auto', 'first', 'last', 'mean'),
  )


class Objective:
  """The loss is the mean over all texts."""

  families = ('encoder', 'decoder', 'encoder_decoder')
  packing = 'first_fit'
  needs = ('text', 'label')
  terms = ('loss',)
  perplexity = ''
  likelihood = False

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    self.family = family_of(config.model.name)
    self.tokenizer = tokenizer
    self.labels = tuple(config.task.labels)
    self.max_length = config.max_length
    auto = 'last' if self.family == 'decoder' else 'first'
    self.pooling = auto if config.objective.pooling == 'auto' else config.objective.pooling
    if self.family == 'encoder_decoder' and config.objective.pooling != 'auto':
      raise UserError("config.objective.pooling: an encoder-decoder has only 'auto'")
    slots = max(1, self.max_length // MIN_ITEM)
    label_keys = ('targets', 'target_positions', 'target_weights', 'example_ids')
    if self.family == 'encoder_decoder':
      self.streams = {
        'encoder': Stream(self.max_length, ('encoder_inputs',), prefix='encoder_'),
        'decoder': Stream(
          slots, ('decoder_inputs', *label_keys), prefix='decoder_',
          offset={'target_positions': 'decoder'},
        ),
      }  # fmt: skip
    else:
      offset = {'target_positions': 'inputs'}
      self.streams = {
        'inputs': Stream(self.max_length, ('inputs',), prefix=''),
        'targets': Stream(slots, label_keys, offset=offset),
      }

  def items(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tokenised examples: tokens (cut to fit a row), label index, and the example's number."""
    tokens = self.tokenizer.encode_batch([example['text'] for example in examples])
    specials = 1 if self.family == 'encoder_decoder' else 2
    return [
      {
        'tokens': ids[: self.max_length - specials],
        # An example to predict may have no label.
        'label': self.labels.index(example['label']) if 'label' in example else 0,
        'id': number,
      }
      for number, (ids, example) in enumerate(zip(tokens, examples, strict=True))
    ]

  def lengths(self, item: Mapping[str, Any]) -> dict[str, int]:
    if self.family == 'encoder_decoder':
      return {'encoder': len(item['tokens']) + 1, 'decoder': 1}
    return {'inputs': len(item['tokens']) + 2, 'targets': 1}

  def features(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """inputs [n] (or encoder_inputs [n] and decoder_inputs [1]) and the label's keys [1]."""
    t, tokens = self.tokenizer, item['tokens']
    one = lambda value, dtype=np.int32: np.array([value], dtype)
    features = {
      'targets': one(item['label']),
      'target_positions': one(0),
      'target_weights': one(1.0, np.float32),
      'example_ids': one(item['id']),
    }
    if self.family == 'encoder_decoder':
      features['encoder_inputs'] = np.append(tokens, t.eos_id).astype(np.int32)
      features['decoder_inputs'] = one(t.bos_id)
      return features
    first, last = (t.cls_id, t.sep_id) if self.family == 'encoder' else (t.bos_id, t.eos_id)
    features['inputs'] = np.concatenate([[first], tokens, [last]]).astype(np.int32)
    if self.pooling == 'last':
      features['target_positions'] = one(len(features['inputs']) - 1)
    return features

  def head(self, model: TransformerConfig) -> nn.Module:
    return Head(model, len(self.labels), self.pooling, self.family)

  def weights(self, batch: Batch) -> dict[str, Array]:
    return {'loss': batch['target_weights'].sum()}

  def losses(self, outputs, batch: Batch) -> tuple[dict[str, Array], dict[str, Mean]]:
    """Summed loss of each term, and the metrics."""
    loss, accuracy = losses.class_metrics(outputs, batch['targets'], batch['target_weights'])
    return {'loss': loss.total}, {'loss': loss, 'accuracy': accuracy}

  def predict(self, outputs: Array, batch: Batch) -> dict[str, Array]:
    """probabilities [B, T, C], example_ids [B, T], weights [B, T] (0: an empty slot)."""
    return {
      'probabilities': jax.nn.softmax(outputs),
      'example_ids': batch['example_ids'],
      'weights': batch['target_weights'],
    }


class Head(nn.Module):
  """Pools each packed text and classifies it."""

  config: TransformerConfig
  classes: int
  pooling: str
  family: str

  @nn.compact
  def __call__(self, output, batch, deterministic):
    positions = batch['target_positions']
    if self.pooling == 'mean':
      # The segment of the token that target_positions names, averaged.
      segment_ids = batch['segment_ids']
      wanted = jnp.take_along_axis(segment_ids, positions, 1)[:, :, None]
      members = (segment_ids[:, None] == wanted).astype(output.hidden.dtype)
      pooled = members @ output.hidden / members.sum(-1, keepdims=True)
    else:
      pooled = gather(output.hidden, positions)
    head = ClassHead(
      self.config,
      self.classes,
      pooler=self.family == 'encoder',
      bias=self.family != 'decoder',
      name='classes',
    )
    return head(pooled, deterministic)
