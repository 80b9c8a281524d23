"""Augmentation of labelled texts: words dropped, exchanged and masked, while training only.

A word is its tokens, so that no text is tokenised again and none grows. Easy data augmentation (Wei
and Zou 2019) has random deletion and swap; masks are those of word dropout with a token of its own.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from flaxlm.config.data import DataConfig
from flaxlm.errors import UserError


class Augmentation:
  """Changes the texts of an item; `objective.augmented` names their keys."""

  def __init__(self, config: DataConfig, objective: Any, name: str):
    """Raises UserError where a rate is set and the objective or the tokenizer does not allow it."""
    self._config = config
    self._keys = objective.augmented
    rates = {key: getattr(config, key) for key in ('word_drop', 'word_swap', 'word_mask')}
    wanted = [key for key, rate in rates.items() if rate]
    self.is_on = bool(wanted)
    if not wanted:
      return
    if not self._keys:
      raise UserError(
        f'config.data.{wanted[0]}: the labels of {name!r} would no longer fit a text with other '
        'words'
      )
    self._starts_word = objective.tokenizer.starts_word
    self._mask_id = objective.tokenizer.mask_id if config.word_mask else None

  def check(self, examples: Iterable[Mapping[str, Any]], prefix: str) -> None:
    """Raises UserError where more would be changed than the texts of the rows.

    prefix: what the task puts before each of them.
    """
    if not self.is_on or 'source' not in self._keys:
      return
    if prefix or any('source' in e and e['source'] != e['text'] for e in examples):
      raise UserError(
        'config.data.word_drop, word_swap, word_mask: would also change what the task puts round a '
        'text that is read to write (task.prefix, the names of columns)'
      )

  def __call__(self, item: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The item with other texts; `rng` is drawn from only where a rate is set."""
    texts = {key: item[key] for key in self._keys if item.get(key) is not None}
    return item | {key: self._text(tokens, rng) for key, tokens in texts.items()}

  def _text(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int32 [n] -> int32 [m <= n]; a text keeps a word at least."""
    if not len(tokens):
      return tokens
    starts = np.flatnonzero(self._starts_word[tokens])
    words = np.split(tokens, starts[starts > 0])
    if self._config.word_drop:
      draws = rng.random(len(words))
      words = [w for w, x in zip(words, draws, strict=True) if x >= self._config.word_drop] or [
        words[int(draws.argmax())]
      ]
    if self._config.word_swap:
      for i in np.flatnonzero(rng.random(len(words) - 1) < self._config.word_swap):
        words[i], words[i + 1] = words[i + 1], words[i]
    if self._config.word_mask:
      masked = rng.random(len(words)) < self._config.word_mask
      words = [
        np.full_like(w, self._mask_id) if mask else w for w, mask in zip(words, masked, strict=True)
      ]
    return np.concatenate(words)
