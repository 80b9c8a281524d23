"""What objectives share that read something off a whole text, or off a pair of texts.

How texts are written is in `marks.py`. An encoder is read at [CLS] (or at the last token, or as the
mean of all), a decoder at its last token, EOS if there is one. In an encoder-decoder the decoder
gets its start token alone and is read there, or it gets the text, too, one place later, and is read
at the last place (Lewis et al. 2020, section 3.1).
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from flaxlm import terminal
from flaxlm.config.field import Named, field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.config.transformer import TransformerConfig
from flaxlm.data.packing import Stream
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError
from flaxlm.models.family import at_end, family_of
from flaxlm.models.heads import ClassHead, gather
from flaxlm.objectives import base
from flaxlm.objectives.marks import Marks, cut_pair, decoder_field, separators_field

# Shortest text that is worth packing, in tokens: it bounds how many labels a row can hold.
MIN_ITEM = 4


@dataclasses.dataclass(frozen=True)
class EachTokenConfig(Named):
  """Fields of objectives that pool nothing, and read something off each token."""

  pooler: str = field(
    'none',
    'what comes before the output layer: `none`, or the `transform` of a masked LM head '
    '(ModernBERT)',
    choices=('none', 'transform'),
  )


@dataclasses.dataclass(frozen=True)
class PooledConfig(Named):
  """Fields of every objective that reads something off a whole text."""

  pooling: str = field(
    'auto',
    'what stands for the text: `first`, `last` or `mean` of its tokens; `auto`: last of a decoder '
    'and of an XLNet, else first; an encoder-decoder with `first` reads the start token of its '
    'decoder, with `last` also gives it the text',
    choices=('auto', 'first', 'last', 'mean'),
  )
  pooler: str = field(
    'auto',
    'what follows it before the output layer: a dense layer and `tanh` (BERT), the `transform` of '
    'a masked LM head (ModernBERT), `none`; `auto`: tanh of an encoder, and of an encoder-decoder '
    'with pooling=last',
    choices=('auto', 'none', 'tanh', 'transform'),
  )
  pair_separators: int = separators_field()

  def resolved(self, model: str) -> 'PooledConfig':
    """With what `auto` stands for under the trunk of this name; UserError for what it has not."""
    pooling, pooler, family = self.pooling, self.pooler, family_of(model)
    if family == 'encoder_decoder' and pooling == 'mean':
      raise UserError("config.objective.pooling: an encoder-decoder has 'first' and 'last' only")
    if pooling == 'auto':
      pooling = 'last' if at_end(model) else 'first'
    if pooler == 'auto':
      both = family == 'encoder_decoder' and pooling == 'last'
      pooler = 'tanh' if family == 'encoder' or both else 'none'
    return dataclasses.replace(self, pooling=pooling, pooler=pooler)


@dataclasses.dataclass(frozen=True)
class TextConfig(PooledConfig):
  """Fields of those that an encoder-decoder serves, too."""

  marks: str = field(
    't5',
    'tokens round a text, as the trunk was pretrained with: `t5` (text EOS; the decoder starts '
    'with BOS) or `bart` (BOS text EOS; it starts with EOS)',
    choices=('t5', 'bart'),
    when={'config.model.name': ('encoder_decoder',)},
  )
  decoder_marks: str = decoder_field()


class Pooled(base.Objective):
  """Texts and pairs of texts, and where they are read.

  Subclasses have `label_key`, the key of what is learned of a text, if that is one number;
  `num_outputs`; `weights`, `losses` and `predict`. In a batch,
  `target_weights` are 0 for a text without a label, `example_weights` only for an empty slot.
  """

  families = ('encoder', 'decoder', 'encoder_decoder')
  packing = 'first_fit'
  label_key = 'targets'
  num_outputs = 1
  augmented = ('tokens', 'pair')

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    c = config.objective
    self.marks = Marks(config, tokenizer, c.pair_separators, c.marks, c.decoder_marks)
    self.family = self.marks.family
    self.config = config.objective.resolved(config.model.name)
    self.tokenizer = tokenizer
    self.max_length = config.max_length
    self.slots = max(1, self.max_length // MIN_ITEM)
    keys = ('target_positions', 'target_weights', 'example_weights', 'example_ids')
    keys = (self.label_key, *keys) if self.label_key else keys
    inputs = Stream(self.max_length, self.marks.keys, prefix=self.marks.prefix)
    if self.family == 'encoder_decoder':
      room = self.max_length if self.config.pooling == 'last' else self.slots
      decoder = Stream(room, ('decoder_inputs',), prefix='decoder_')
      self.streams = {'encoder': inputs, 'decoder': decoder}
    else:
      self.streams = {'inputs': inputs}
    offset = {'target_positions': list(self.streams)[-1]}
    self.streams['targets'] = Stream(self.slots, keys, offset=offset)

  @abc.abstractmethod
  def label(self, example: Mapping[str, Any]) -> Any:
    """What is learned of a labelled example; the value of `label_key`."""

  def items(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tokenised examples: tokens (and those of a second text), cut to fit a row; label; number."""
    firsts = self.tokenizer.encode_batch([example['text'] for example in examples])
    paired = [number for number, example in enumerate(examples) if 'text_pair' in example]
    seconds = self.tokenizer.encode_batch([examples[number]['text_pair'] for number in paired])
    second_of = dict(zip(paired, seconds, strict=True))
    items, cut = [], 0
    for number, (first, example) in enumerate(zip(firsts, examples, strict=True)):
      second = second_of.get(number)
      room = self.max_length - self.marks.count(second is not None)
      other = 0 if second is None else len(second)
      a, b = cut_pair(len(first), other, room)
      cut += a + b < len(first) + other
      if not a + b + self.marks.count(second is not None):
        raise UserError(
          f'config.objective.decoder_marks: text {number} (from 0) has no tokens, and nothing that '
          'could be read stands round it'
        )
      items.append(
        {
          'tokens': first[:a],
          'pair': None if second is None else second[:b],
          # An example to predict may have no label.
          'label': self.label(example) if 'label' in example else 0,
          'labelled': 'label' in example,
          'id': number,
        }
      )
    terminal.cut(cut, len(items), 'texts do not fit config.data.max_length')
    return items

  def lengths(self, item: Mapping[str, Any]) -> dict[str, int]:
    pair = item['pair'] is not None
    length = len(item['tokens']) + (len(item['pair']) if pair else 0) + self.marks.count(pair)
    if self.family != 'encoder_decoder':
      return {'inputs': length, 'targets': 1}
    decoder = length if self.config.pooling == 'last' else 1
    return {'encoder': length, 'decoder': decoder, 'targets': 1}

  def features(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """inputs [n] (or encoder_inputs [n] and decoder_inputs [1 or n]), the label's keys [1]."""
    features = dict(self.marks.features(item['tokens'], item['pair']))
    tokens = features[self.marks.key]
    place = len(tokens) - 1 if self.config.pooling == 'last' else 0
    if self.family == 'encoder_decoder':
      shifted = np.concatenate([self.marks.start, tokens[:-1]]).astype(np.int32)
      features['decoder_inputs'] = shifted[: place + 1]
    if self.label_key:
      features[self.label_key] = np.array([item['label']])
    return features | {
      'target_positions': np.array([place], np.int32),
      'target_weights': np.array([item['labelled']], np.float32),
      'example_weights': np.ones(1, np.float32),
      'example_ids': np.array([item['id']], np.int32),
    }

  def head(self, model: TransformerConfig) -> nn.Module:
    return Head(model, self.num_outputs, self.config.pooling, self.family, self.config.pooler)


class Head(nn.Module):
  """Pools each packed text, and maps it to `classes` numbers: float32 [B, T, classes]."""

  config: TransformerConfig
  classes: int
  pooling: str
  family: str
  pooler: str

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
      pooler=self.pooler,
      bias=self.family != 'decoder',
      name='classes',
    )
    return head(pooled, deterministic)
