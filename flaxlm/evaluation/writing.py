"""What a model writes for the examples of a set: for metrics of written texts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flaxlm import terminal
from flaxlm.decoding.cache import Reader
from flaxlm.decoding.generate import generate
from flaxlm.decoding.sampling import Sampling


def writes(experiment: Any) -> bool:
  """Whether the task scores written texts, and the objective can write."""
  wanted = getattr(experiment.task, 'writes', False)
  return wanted and hasattr(experiment.objective, 'prompts')


def write(
  experiment: Any,
  params: Any,
  name: str,
  numbers: Sequence[int],
  should_stop: Callable[[], Any] = lambda: None,
) -> dict[str, np.ndarray] | None:
  """Greedy texts for the examples `numbers` of the set `name`.

  Examples of like length are written together; what is written for one does not depend on the
  others.

  Returns:
    output_ids int [M], `numbers` in their order, and outputs [M], texts; None if it was stopped.
  """
  config, examples = experiment.config, experiment.examples[name]
  prompts = experiment.objective.prompts([examples[number] for number in numbers])
  size = config.evaluation.batch_size or config.global_batch_size
  order = sorted(range(len(prompts)), key=lambda i: _length(prompts[i]), reverse=True)
  texts: list[str] = [''] * len(prompts)
  reader = Reader.of(experiment.model, params)
  with terminal.bar(f'write {name}', len(prompts), 'texts') as bar:
    for start in range(0, len(order), size):
      if should_stop():
        return None
      chosen = order[start : start + size]
      for i, text in zip(
        chosen, _written(experiment, reader, [prompts[i] for i in chosen]), strict=True
      ):
        texts[i] = text
      bar.advance(len(chosen))
  return {'output_ids': np.array(numbers, np.int64), 'outputs': np.array(texts, object)}


def _length(prompt: Any) -> int:
  inputs = prompt.inputs if prompt.encoder_inputs is None else prompt.encoder_inputs
  return len(inputs)


def _written(experiment: Any, reader: Reader, prompts: Sequence[Any]) -> list[str]:
  """The text that is written for each prompt: all that this file needs of decoding."""
  config = experiment.config
  longest = config.evaluation.max_new_tokens or config.data.max_target_length or 128
  found = [c.tokens for c in generate(reader, prompts, Sampling(longest, temperature=0.0))]
  t = experiment.tokenizer
  if prompts[0].encoder_inputs is not None:
    return [t.decode(tokens).strip() for tokens in found]
  # Only behind its prompt is a token decoded as it stands there, with the space before it.
  whole = [t.decode([*p.inputs, *tokens]) for p, tokens in zip(prompts, found, strict=True)]
  heads = [len(t.decode(prompt.inputs)) for prompt in prompts]
  return [text[head:].strip() for text, head in zip(whole, heads, strict=True)]
