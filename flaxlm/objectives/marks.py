"""The tokens that stand round a text, or round two, where a trunk reads them as a whole.

Encoder: [CLS] text [SEP], or [CLS] first [SEP] second [SEP], the second part with token type 1
where the trunk has such (Devlin et al. 2019, figure 4; RoBERTa puts two [SEP] between them). XLNet
has [CLS] at the end, with a token type of its own, 2 (Yang et al. 2019, section 2.5).
Decoder: BOS text EOS, or BOS first SEP second EOS (Radford et al. 2018, figure 1); public
classifiers have nothing round it, or BOS. Encoder-decoder: text EOS, or first EOS second EOS
(Raffel et al. 2020), or with BOS before it (Lewis et al. 2020).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxlm.config.field import field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.models.family import at_end, family_of, has_cls_last


def separators_field() -> Any:
  """The field `pair_separators` of an objective that reads pairs."""
  return field(1, 'separators between the texts of a pair: RoBERTa and BART have 2', low=1, high=2)


def decoder_field() -> Any:
  """The field `decoder_marks` of an objective whose texts a decoder may read."""
  return field(
    'bos_eos',
    'tokens round a text that a decoder reads; public classifiers and taggers were trained with '
    '`none` (GPT-2) or `bos` (Llama), and classifiers are read at the last token of the text',
    choices=('bos_eos', 'bos', 'none'),
    when={'config.model.name': ('decoder',)},
  )


class Marks:
  """What stands round the tokens of a text, by the family of the trunk.

  Public: family; key (the batch key of the tokens); prefix (of their stream); typed (whether token
  types are among the features); at_end (whether the last token stands for the text, and not the
  first: all that a decoder has read, or a [CLS] at the end); start (what the decoder of an
  encoder-decoder starts with).

  separators: [SEP] between two texts. style: 't5' or 'bart', of an encoder-decoder. ends: of a
  decoder: 'bos_eos', 'bos' or 'none', what stands before and behind.
  """

  def __init__(
    self,
    config: ExperimentConfig,
    tokenizer: Tokenizer,
    separators: int = 1,
    style: str = 't5',
    ends: str = 'bos_eos',
  ):
    t = tokenizer
    self.family = family_of(config.model.name)
    self.prefix = 'encoder_' if self.family == 'encoder_decoder' else ''
    self.key = f'{self.prefix}inputs'
    self.typed = self.family == 'encoder' and config.model.token_types > 1
    cls_last = has_cls_last(config.model.name)
    self.at_end = at_end(config.model.name)
    self._cls_type = min(2, config.model.token_types - 1) if cls_last else None
    if cls_last:
      self._first, middle, self._last = [], t.sep_id, [t.sep_id, t.cls_id]
    elif self.family == 'encoder':
      self._first, middle, self._last = [t.cls_id], t.sep_id, [t.sep_id]
    elif self.family == 'decoder':
      self._first = [] if ends == 'none' else [t.bos_id]
      middle, self._last = t.sep_id, [t.eos_id] if ends == 'bos_eos' else []
    else:
      bart = style == 'bart'
      self._first, middle, self._last = [t.bos_id] if bart else [], t.eos_id, [t.eos_id]
      self.start = [t.eos_id if bart else t.bos_id]
    self._middle = [middle] * separators

  @property
  def keys(self) -> tuple[str, ...]:
    """Batch keys of the stream of tokens."""
    return (self.key, 'token_type_ids') if self.typed else (self.key,)

  def count(self, pair: bool) -> int:
    """Marks round one text, or two."""
    return len(self._first) + len(self._last) + (len(self._middle) if pair else 0)

  def first_start(self) -> int:
    """Where the first text begins."""
    return len(self._first)

  def second_start(self, first: np.ndarray) -> int:
    """Where the second text begins, behind the first."""
    return len(self._first) + len(first) + len(self._middle)

  def features(
    self, first: np.ndarray, second: np.ndarray | None = None
  ) -> Mapping[str, np.ndarray]:
    """The marked tokens under `key`, and their token types, if the trunk has some: int32 [n]."""
    if second is None:
      parts = [self._first, first, self._last]
      boundary = len(first) + self.count(False)
    else:
      parts = [self._first, first, self._middle, second, self._last]
      boundary = self.second_start(first)
    tokens = np.concatenate(parts).astype(np.int32)
    features = {self.key: tokens}
    if self.typed:
      types = (np.arange(len(tokens)) >= boundary).astype(np.int32)
      if self._cls_type is not None:
        types[-1] = self._cls_type
      features['token_type_ids'] = types
    return features


def cut_pair(first: int, second: int, room: int) -> tuple[int, int]:
  """Lengths of two texts that fit `room` together: the longer one loses its end first."""
  if first + second <= room:
    return first, second
  half = room // 2
  if second <= half:
    return room - second, second
  if first <= room - half:
    return first, room - first
  return room - half, half
