"""Causal modelling of completions: a decoder reads BOS prompt completion EOS, and learns the end.

The loss is on the tokens of the completion and on EOS only (instruction tuning; Radford et al.
2018, section 3.3, lay out tasks for a decoder in this way).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.data.packing import Stream
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.objectives import losses
from flaxlm.objectives.base import Prompt
from flaxlm.objectives.supervised import Supervised


@dataclasses.dataclass(frozen=True)
class Config(losses.VocabLossConfig):
  """Causal modelling of completions."""


class Objective(Supervised):
  """The loss is the mean over all tokens of completions."""

  families = ('decoder',)
  prompt_marks = 1  # BOS
  too_long = 'prompts leave no room in a row for a completion of {new_tokens} tokens'

  def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
    self.config = config.objective
    self.tokenizer = tokenizer
    self.length = config.max_length
    self._beyond = max(config.model.max_length - self.length, 0)
    keys = ('inputs', 'targets', 'target_weights', 'example_ids')
    self.streams = {'inputs': Stream(self.length, keys, prefix='')}

  def cut(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a prompt that is too long the end stays, in what the completion leaves: at least half."""
    room = self.length - 1  # BOS; EOS is no input.
    source = source[max(len(source) - max(room - len(target), room - room // 2), 0) :]
    return source, target[: room - len(source)]

  def fitted(self, source: np.ndarray, new_tokens: int) -> np.ndarray:
    """A prompt that fits a row, or what stays of it beside a completion of `new_tokens`.

    A decoder that is full would go on from half of what it has read, and without BOS. What it can
    read beyond a row is room, too.
    """
    needed = max(new_tokens - self._beyond, 0)
    if len(source) + 1 + needed <= self.length:
      return source
    return self.cut(source, np.zeros(needed, np.int32))[0]

  def lengths(self, item: Mapping[str, Any]) -> dict[str, int]:
    return {'inputs': 1 + len(item['source']) + len(self.ended(item)) - 1}

  def features(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """inputs, targets, target_weights, example_ids [n]."""
    target = self.ended(item)
    tokens = np.concatenate([[self.tokenizer.bos_id], item['source'], target]).astype(np.int32)
    n = len(tokens) - 1
    return {
      'inputs': tokens[:-1],
      'targets': tokens[1:],
      'target_weights': self.weighed(item, np.arange(n) >= n - len(target)),
      'example_ids': np.full(n, item['id'], np.int32),
    }

  def prompt_of(self, tokens: np.ndarray) -> Prompt:
    """To complete a text."""
    t = self.tokenizer
    return Prompt(np.append(t.bos_id, tokens).astype(np.int32), eos_id=t.eos_id)
