"""Supervised sequence to sequence: an encoder reads the source, a decoder writes the target.

Marks as of T5 (Raffel et al. 2020): source EOS, and the decoder starts from BOS. As of BART (Lewis
et al. 2020): BOS source EOS, and the decoder starts from EOS, then BOS.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxlm.config.field import field
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.data.packing import Stream
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.objectives import losses
from flaxlm.objectives.base import Prompt
from flaxlm.objectives.supervised import Supervised


@dataclasses.dataclass(frozen=True)
class Config(losses.VocabLossConfig):
  """Supervised sequence to sequence."""

  marks: str = field(
    't5',
    'tokens round source and target, as the trunk was pretrained with: `t5` (span_corruption) or '
    '`bart` (denoising)',
    choices=('t5', 'bart'),
  )


class Objective(Supervised):
  """The loss is the mean over all target tokens, EOS included."""

  families = ('encoder_decoder',)

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    self.config = config.objective
    self.tokenizer = t = tokenizer
    bart = self.config.marks == 'bart'
    self._before = [t.bos_id] if bart else []
    self._start = [t.eos_id, t.bos_id] if bart else [t.bos_id]
    keys = ('decoder_inputs', 'targets', 'target_weights', 'example_ids')
    self.streams = {
      'encoder': Stream(config.max_length, ('encoder_inputs',), prefix='encoder_'),
      'decoder': Stream(
        config.data.max_target_length or config.max_length, keys, prefix='decoder_'
      ),
    }

  def cut(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The beginning of both."""
    room = {name: stream.capacity for name, stream in self.streams.items()}
    return (
      source[: room['encoder'] - len(self._before) - 1],
      target[: room['decoder'] - len(self._start)],
    )

  def lengths(self, item: Mapping[str, Any]) -> dict[str, int]:
    encoder = len(self._before) + len(item['source']) + 1
    return {'encoder': encoder, 'decoder': len(self._start) + len(self.ended(item)) - 1}

  def features(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """encoder_inputs [n]; decoder_inputs, targets, target_weights, example_ids [t]."""
    tokens = np.concatenate([self._start, self.ended(item)]).astype(np.int32)
    n = len(tokens) - 1
    return {
      'encoder_inputs': self._source(item['source']),
      'decoder_inputs': tokens[:-1],
      'targets': tokens[1:],
      # BART's second start token is given, not predicted.
      'target_weights': self.weighed(item, np.arange(n) >= len(self._start) - 1),
      'example_ids': np.full(n, item['id'], np.int32),
    }

  def _source(self, tokens: np.ndarray) -> np.ndarray:
    return np.concatenate([self._before, tokens, [self.tokenizer.eos_id]]).astype(np.int32)

  def prompt_of(self, tokens: np.ndarray) -> Prompt:
    """To write the target of a source."""
    return Prompt(
      np.array(self._start, np.int32), self._source(tokens), eos_id=self.tokenizer.eos_id
    )
