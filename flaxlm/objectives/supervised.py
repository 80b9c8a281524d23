"""What objectives share that learn to write a target text for a source text, from labelled rows."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxlm import terminal
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.objectives import losses
from flaxlm.objectives.base import Prompt
from flaxlm.objectives.next_token import NextToken
from flaxlm.types import Array, Batch


class Supervised(NextToken):
  """The loss is the mean over all target tokens, each given the true ones before it.

  Subclasses put example_ids [T], the example's number at each target, beside the
  targets.
  """

  packing = 'first_fit'
  needs = ('text', 'target')
  augmented = ('source',)
  # What is wrong with the sources that `fitted` cuts.
  too_long = 'sources are longer than config.data allows'
  tokenizer: Tokenizer

  @abc.abstractmethod
  def cut(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Source and target without what does not fit a row."""

  @abc.abstractmethod
  def prompt_of(self, tokens: np.ndarray) -> Prompt:
    """To write the target of a source, given as token ids."""

  def prompt(self, text: str) -> Prompt:
    """To write the target of a source text."""
    return self.prompt_of(self.tokenizer.encode(text))

  def prompts(self, examples: Sequence[Mapping[str, Any]], new_tokens: int) -> list[Prompt]:
    """To write the targets of examples, at most `new_tokens` each; see `fitted`."""
    sources = self.tokenizer.encode_batch([source_text(example) for example in examples])
    fitted = [self.fitted(source, new_tokens) for source in sources]
    cut = sum(len(a) < len(b) for a, b in zip(fitted, sources, strict=True))
    terminal.cut(cut, len(sources), self.too_long.format(new_tokens=new_tokens))
    return [self.prompt_of(source) for source in fitted]

  def fitted(self, source: np.ndarray, new_tokens: int) -> np.ndarray:
    """What is read of a source to write so many tokens."""
    del new_tokens
    return self.cut(source, source[:0])[0]

  def items(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tokenised examples: source and target, cut to fit a row, and the example's number."""
    sources = self.tokenizer.encode_batch([source_text(example) for example in examples])
    # A text may be there only for its target to be written.
    targets = self.tokenizer.encode_batch([example.get('target', '') for example in examples])
    items, cut = [], 0
    for number, whole in enumerate(zip(sources, targets, strict=True)):
      source, target = self.cut(*whole)
      cut += len(source) + len(target) < len(whole[0]) + len(whole[1])
      items.append(
        {
          'source': source,
          'target': target,
          'id': number,
          'whole': len(target) == len(whole[1]),
          'labelled': 'target' in examples[number],
        }
      )
    terminal.cut(cut, len(items), 'rows are longer than config.data allows')
    return items

  def ended(self, item: Mapping[str, Any]) -> np.ndarray:
    """The target tokens of an item, with EOS unless they were cut: int32 [t]."""
    end = [self.tokenizer.eos_id] if item['whole'] else []
    return np.concatenate([item['target'], end]).astype(np.int32)

  def weighed(self, item: Mapping[str, Any], targets: np.ndarray) -> np.ndarray:
    """target_weights [T]: 1 for the marked targets, 0 for all of an item without a target."""
    return (targets & item['labelled']).astype(np.float32)

  def predict(self, outputs: Any, batch: Batch) -> dict[str, Array]:
    """Of each target [B, T]: nll, correct, ends, example_ids, weights.

    correct: whether the likeliest token is right; ends: whether it is EOS, which a target that was
    cut lacks.
    """
    nll, correct = losses.token_scores(outputs, batch['targets'])
    return {
      'nll': nll,
      'correct': correct,
      'ends': batch['targets'] == self.tokenizer.eos_id,
      'example_ids': batch['example_ids'],
      'weights': batch['target_weights'],
    }


def source_text(example: Mapping[str, Any]) -> str:
  """What is read of an example; a task may have put what it reads of a pair into one text."""
  return example.get('source', example['text'])
