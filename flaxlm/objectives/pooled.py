"""What objectives share that read something off a whole text, or off a pair of texts.

How texts are written is in `marks.py`. An encoder is read at [CLS] (or at the last token, or as the
mean of all), a decoder at EOS. In an encoder-decoder the decoder gets BOS alone, and is read there.
"""

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
from flaxlm.models.heads import ClassHead, gather
from flaxlm.objectives.marks import Marks, cut_pair

# Shortest text that is worth packing, in tokens: it bounds how many labels a row can hold.
MIN_ITEM = 4


@dataclasses.dataclass(frozen=True)
class PooledConfig(Named):
  """Fields of every objective that reads something off a whole text."""

  pooling: str = field(
    'auto',
    'what stands for the text: `first`, `last` or `mean` of its tokens; `auto`: first of an '
    'encoder (last of an XLNet), last of a decoder, the start token of an encoder-decoder',
    choices=('auto', 'first', 'last', 'mean'),
  )
  pair_separators: int = field(
    1, 'separators between the texts of a pair: RoBERTa and BART have 2', low=1, high=2
  )


class Pooled:
  """Texts and pairs of texts, and where they are read.

  Subclasses have `label_key`, the key of what is learned of a text, if that is one number;
  `label(example)`, its value; `num_outputs`; `weights`, `losses` and `predict`. In a batch,
  `target_weights` are 0 for a text without a label, `example_weights` only for an empty slot.
  """

  families = ('encoder', 'decoder', 'encoder_decoder')
  packing = 'first_fit'
  terms = ('loss',)
  perplexity = ''
  likelihood = False
  label_key = 'targets'
  num_outputs = 1
  augmented = ('tokens', 'pair')

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    self.marks = Marks(config, tokenizer, config.objective.pair_separators)
    self.family = self.marks.family
    self.tokenizer = tokenizer
    self.max_length = config.max_length
    self.pooling = auto_pooling(config, self.marks)
    self.slots = max(1, self.max_length // MIN_ITEM)
    keys = ('target_positions', 'target_weights', 'example_weights', 'example_ids')
    keys = (self.label_key, *keys) if self.label_key else keys
    inputs = Stream(self.max_length, self.marks.keys, prefix=self.marks.prefix)
    if self.family == 'encoder_decoder':
      offset = {'target_positions': 'decoder'}
      decoder = Stream(self.slots, ('decoder_inputs', *keys), prefix='decoder_', offset=offset)
      self.streams = {'encoder': inputs, 'decoder': decoder}
    else:
      offset = {'target_positions': 'inputs'}
      self.streams = {'inputs': inputs, 'targets': Stream(self.slots, keys, offset=offset)}

  def label(self, example: Mapping[str, Any]) -> Any:  # pragma: no cover
    """What is learned of a labelled example; the value of `label_key`."""
    raise NotImplementedError

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
    if cut:
      terminal.warn(f'{cut} of {len(items)} texts do not fit config.data.max_length, and are cut')
    return items

  def lengths(self, item: Mapping[str, Any]) -> dict[str, int]:
    pair = item['pair'] is not None
    length = len(item['tokens']) + (len(item['pair']) if pair else 0) + self.marks.count(pair)
    return dict(zip(self.streams, (length, 1), strict=False))

  def features(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """inputs [n] (or encoder_inputs [n] and decoder_inputs [1]) and the label's keys [1]."""
    features = dict(self.marks.features(item['tokens'], item['pair']))
    place = len(features[self.marks.key]) - 1 if self.pooling == 'last' else 0
    if self.family == 'encoder_decoder':
      place = 0
      features['decoder_inputs'] = np.array([self.tokenizer.bos_id], np.int32)
    if self.label_key:
      features[self.label_key] = np.array([item['label']])
    return features | {
      'target_positions': np.array([place], np.int32),
      'target_weights': np.array([item['labelled']], np.float32),
      'example_weights': np.ones(1, np.float32),
      'example_ids': np.array([item['id']], np.int32),
    }

  def head(self, model: TransformerConfig) -> nn.Module:
    return Head(model, self.num_outputs, self.pooling, self.family)


def auto_pooling(config: ExperimentConfig, marks: Marks) -> str:
  """What `objective.pooling` comes to; UserError where the family leaves no choice."""
  pooling = config.objective.pooling
  if marks.family == 'encoder_decoder' and pooling != 'auto':
    raise UserError("config.objective.pooling: an encoder-decoder has only 'auto'")
  if pooling == 'auto':
    return 'last' if marks.at_end else 'first'
  return pooling


class Head(nn.Module):
  """Pools each packed text, and maps it to `classes` numbers: float32 [B, T, classes]."""

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
