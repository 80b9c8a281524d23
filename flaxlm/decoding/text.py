"""Texts in, texts out: prompts of the objective, tokens of the model, and where a text stops."""

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxlm.data.tokenizer import Tokenizer
from flaxlm.decoding import beam as beams
from flaxlm.decoding import generate as sampler
from flaxlm.decoding.beam import Beam
from flaxlm.decoding.cache import Reader
from flaxlm.decoding.sampling import Sampling
from flaxlm.errors import UserError
from flaxlm.objectives.base import Objective, Prompt


@dataclasses.dataclass(frozen=True)
class Output:
  """What was written for a prompt. finish: 'eos', 'stop' (a stop string) or 'length'.

  tokens: new ids, up to the one that completes the stop string, which `text` ends before; score and
  log_probability: of a beam search, of all that it found before a stop string was looked for, else
  None.
  """

  text: str
  tokens: np.ndarray
  finish: str
  log_probability: float | None = None
  score: float | None = None


class Writer:
  """Writes texts with a trained model.

  objective: has `prompt(text)`; longest: tokens that the encoder was trained on, at most.
  """

  def __init__(self, reader: Reader, objective: Objective, tokenizer: Tokenizer, longest: int):
    self._reader, self._objective = reader, objective
    self._tokenizer, self._longest = tokenizer, longest

  def prompt(self, text: str, where: str) -> Prompt:
    """What decoding begins with; UserError, naming `where`, for more than the encoder reads."""
    prompt = self._objective.prompt(text)
    if prompt.encoder_inputs is not None and len(prompt.encoder_inputs) > self._longest:
      over = len(prompt.encoder_inputs) - self._longest
      raise UserError(f'{where}: {text[:30]!r}... has {over} tokens more than fit')
    return prompt

  def write(
    self,
    prompts: Sequence[Prompt],
    how: Sampling | Beam,
    draws: Sequence[tuple[int, int]] | None = None,
    stops: Sequence[str] = (),
  ) -> list[list[Output]]:
    """For each prompt one text, or of a beam search the best, in their order.

    Args:
      prompts: of one batch.
      how: to choose tokens.
      draws: (seed, number) of each row, for sampling.
      stops: strings; a text ends before the first of them. A beam search finds its texts first.
    """

    def stop(row: int, tokens: np.ndarray) -> int | None:
      return self._stopped(prompts[row], tokens, stops)

    if isinstance(how, Beam):
      found = beams.search(self._reader, prompts, how)
      return [
        [self._output(prompts[row], hypothesis, stops) for hypothesis in hypotheses]
        for row, hypotheses in enumerate(found)
      ]
    found = sampler.generate(self._reader, prompts, how, draws, stop if stops else None)
    return [[self._output(prompts[row], f, stops)] for row, f in enumerate(found)]

  def text(self, prompt: Prompt, tokens: Sequence[int]) -> str:
    """What new tokens say behind their prompt."""
    if prompt.encoder_inputs is not None:
      # Sentinels say which gap of the prompt the words after them fill.
      return self._tokenizer.decode(tokens, keep_special=self._objective.sentinels)
    # Only behind its prompt is a token decoded as it stands there, with the space before it.
    before = self._tokenizer.decode(prompt.inputs)
    return self._tokenizer.decode([*prompt.inputs, *tokens])[len(before) :]

  def _stopped(self, prompt: Prompt, tokens: np.ndarray, stops: Sequence[str]) -> int | None:
    """How many of the new tokens complete the first stop string; None if there is none."""
    has = lambda n: _end(self.text(prompt, tokens[:n]), stops) is not None
    if not has(len(tokens)):
      return None
    return bisect.bisect_left(range(len(tokens)), True, key=has)

  def _output(self, prompt: Prompt, found: Any, stops: Sequence[str]) -> Output:
    tokens = found.tokens[: self._stopped(prompt, found.tokens, stops)]
    text = self.text(prompt, tokens)
    end = _end(text, stops)
    return Output(
      text if end is None else text[:end],
      tokens,
      found.finish if end is None else 'stop',
      getattr(found, 'log_probability', None),
      getattr(found, 'score', None),
    )


def _end(text: str, stops: Sequence[str]) -> int | None:
  """Where the first of the stop strings begins; None if there is none."""
  return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
