"""What a model writes for the examples of a set: for metrics of written texts."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxlm import distributed, sharding, terminal
from flaxlm.config.schema import Config
from flaxlm.decoding.beam import Beam
from flaxlm.decoding.cache import Reader
from flaxlm.decoding.sampling import Sampling
from flaxlm.decoding.text import Writer

if TYPE_CHECKING:
  from flaxlm.training.experiment import Experiment


def writes(experiment: 'Experiment') -> bool:
  """Whether the task scores written texts, and the objective can write."""
  return (
    experiment.task is not None and experiment.task.writes and bool(experiment.objective.prompts)
  )


def write(
  experiment: 'Experiment',
  params: Any,
  name: str,
  numbers: Sequence[int],
  should_stop: Callable[[], Any] = lambda: None,
) -> dict[str, np.ndarray] | None:
  """The likeliest texts for the examples `numbers` of the set `name`, as config.evaluation says.

  Examples of like length are written together; what is written for one does not depend on the
  others. Of several processes each writes its share, with a copy of the weights on one device.

  Returns:
    output_ids int [M], `numbers` in their order, and outputs [M], texts; None if it was stopped.
  """
  config, examples = experiment.config, experiment.examples[name]
  how = _how(config)
  rows = [examples[number] for number in numbers]
  prompts = experiment.objective.prompts(rows, how.max_new_tokens)
  writer = Writer(
    Reader.of(experiment.model, sharding.local_copy(params, experiment.mesh), experiment.objective),
    experiment.objective,
    experiment.tokenizer,
    config.max_length,
  )
  count = distributed.count()
  size = config.evaluation_rows * count
  order = sorted(range(len(prompts)), key=lambda i: _length(prompts[i]), reverse=True)
  texts: list[str] = [''] * len(prompts)
  with terminal.bar(f'write {name}', len(prompts), 'texts') as bar:
    for start in range(0, len(order), size):
      if should_stop():
        return None
      chosen = order[start : start + size]
      mine = [prompts[i] for i in chosen[distributed.index() :: count]]
      found = writer.write(mine, how) if mine else []
      written = json.dumps([outputs[0].text.strip() for outputs in found])
      for number, share in enumerate(distributed.gather(written)):
        for i, text in zip(chosen[number::count], json.loads(share), strict=True):
          texts[i] = text
      bar.advance(len(chosen))
  return {'output_ids': np.array(numbers, np.int64), 'outputs': np.array(texts, object)}


def _length(prompt: Any) -> int:
  inputs = prompt.inputs if prompt.encoder_inputs is None else prompt.encoder_inputs
  return len(inputs)


def _how(config: Config) -> Sampling | Beam:
  """How tokens are chosen: the likeliest one at each step, or by beam search."""
  evaluation = config.evaluation
  if evaluation.num_beams:
    return Beam(evaluation.num_beams, config.max_new_tokens, evaluation.length_penalty)
  return Sampling(config.max_new_tokens, temperature=0.0)
