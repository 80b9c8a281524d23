"""The arm of transformers for minilm.py: its Trainer, on the rows that a config of flaxlm reads.

Heads, and what is done with words and windows, are those of transformers' example scripts: run_glue
for texts and pairs, run_ner for tags (a word is read at its first piece), run_qa for answers
(windows overlap by half of a row, the best of the 20 likeliest beginnings and ends counts).
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import transformers
from transformers.trainer_utils import get_last_checkpoint

from flaxlm.config.schema import Config
from flaxlm.data.bad_rows import BadRows
from flaxlm.metrics import squad
from flaxlm.training import inputs

IGNORED = -100  # The label of a position without a target.
N_BEST, MAX_ANSWER = 20, 30
Example = Mapping[str, Any]
Features = list[dict[str, Any]]


def tune(
  overridden: tuple[Config, Any],
  weights: pathlib.Path,
  run: pathlib.Path,
  batch: int,
  warmup: float,
) -> dict[str, dict[str, float]]:
  """Split -> metrics of a run of the Trainer with the config's rows, seed, rates and passes.

  Args:
    overridden: config of flaxlm, and its overrides.
    weights: folder of the model.
    run: for the Trainer's checkpoints, from which a stopped run goes on.
    batch: texts in a step.
    warmup: share of the updates.
  """
  config, _ = overridden
  transformers.set_seed(config.seed)  # the new head is drawn here
  tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
  bad = BadRows('error')
  config, examples = inputs.read_examples(config, True, bad)
  examples = dict(examples)
  if config.data.test:
    examples['test'] = inputs.read_examples(config, False, bad)[1]['test']
  kind = KINDS[config.objective.name](config, tokenizer)
  model = kind.model.from_pretrained(weights, num_labels=kind.outputs)
  o = config.optimizer
  trainer = transformers.Trainer(
    model=model,
    args=transformers.TrainingArguments(
      output_dir=str(run),
      seed=config.seed,
      num_train_epochs=config.num_epochs,
      per_device_train_batch_size=batch,
      per_device_eval_batch_size=64,
      learning_rate=o.learning_rate,
      lr_scheduler_type='linear',
      warmup_steps=warmup,
      weight_decay=o.weight_decay,
      adam_beta1=o.b1,
      adam_beta2=o.b2,
      adam_epsilon=o.eps,
      max_grad_norm=o.clip_norm,
      save_strategy='steps',
      save_steps=config.checkpoint.every_steps,
      save_total_limit=1,
      report_to='none',
      use_cpu=True,
    ),
    train_dataset=kind.features(examples.pop('train')),
    data_collator=kind.collate,
  )
  trainer.train(resume_from_checkpoint=get_last_checkpoint(str(run)))
  found = {}
  for split, rows in examples.items():
    features = kind.features(rows)
    outputs = trainer.predict(features).predictions
    found[split] = kind.metrics(rows, features, outputs)
  return found


class Texts:
  """Classification and regression of texts and pairs."""

  model = transformers.AutoModelForSequenceClassification

  def __init__(self, config: Config, tokenizer: Any):
    self._config, self._tokenizer = config, tokenizer
    self._labels = list(getattr(config.task, 'labels', ()))
    self.outputs = len(self._labels) or 1
    self.collate = transformers.DataCollatorWithPadding(tokenizer)

  def features(self, examples: Sequence[Example]) -> Features:
    found = []
    for example in examples:
      texts = [example[key] for key in ('text', 'text_pair') if key in example]
      encoded = self._tokenizer(*texts, truncation=True, max_length=self._config.data.max_length)
      label = example['label']
      if self._labels:
        label = self._labels.index(label)
      found.append({**encoded, 'labels': label})
    return found

  def metrics(self, examples, features, outputs) -> dict[str, float]:
    predictions = {'example_ids': np.arange(len(examples))}
    if self._labels:
      weights = np.exp(outputs - outputs.max(-1, keepdims=True))
      predictions['probabilities'] = weights / weights.sum(-1, keepdims=True)
    else:
      predictions['values'] = outputs[:, 0]
    return inputs.task_of(self._config).metrics(predictions, examples)


class Words:
  """Tags of words, each read at its first piece; words that a row has no room for are O."""

  model = transformers.AutoModelForTokenClassification

  def __init__(self, config: Config, tokenizer: Any):
    self._config, self._tokenizer = config, tokenizer
    self._labels = list(config.task.labels)
    self.outputs = len(self._labels)
    self.collate = transformers.DataCollatorForTokenClassification(tokenizer)

  def features(self, examples: Sequence[Example]) -> Features:
    found = []
    for example in examples:
      encoded = self._encoded(example)
      labels = np.full(len(encoded['input_ids']), IGNORED)
      for word, place in _first_pieces(encoded).items():
        labels[place] = self._labels.index(example['label'][word])
      found.append({**encoded, 'labels': labels.tolist()})
    return found

  def _encoded(self, example: Example) -> Any:
    length = self._config.data.max_length
    return self._tokenizer(
      example['words'], is_split_into_words=True, truncation=True, max_length=length
    )

  def metrics(self, examples, features, outputs) -> dict[str, float]:
    numbers, words, predicted = [], [], []
    for number, example in enumerate(examples):
      tags = np.full(len(example['words']), self._labels.index('O'))
      for word, place in _first_pieces(self._encoded(example)).items():
        tags[word] = outputs[number, place].argmax()
      numbers += [number] * len(tags)
      words += range(len(tags))
      predicted += tags.tolist()
    found = {'example_ids': numbers, 'word_ids': words, 'predicted': predicted}
    predictions = {key: np.array(values) for key, values in found.items()}
    return inputs.task_of(self._config).metrics(predictions, examples)


def _first_pieces(encoded: Any) -> dict[int, int]:
  """Word -> its first piece."""
  found = {}
  for place, word in enumerate(encoded.word_ids()):
    if word is not None:
      found.setdefault(word, place)
  return found


class Answers:
  """Beginnings and ends of answers, in windows that overlap by half of a row."""

  model = transformers.AutoModelForQuestionAnswering
  outputs = 2

  def __init__(self, config: Config, tokenizer: Any):
    self._length, self._tokenizer = config.data.max_length, tokenizer
    pad = transformers.DataCollatorWithPadding(tokenizer)
    own = ('example', 'offsets')
    self.collate = lambda rows: pad([{k: v for k, v in r.items() if k not in own} for r in rows])

  def features(self, examples: Sequence[Example]) -> Features:
    found = []
    for number, example in enumerate(examples):
      encoded = self._tokenizer(
        example['question'].strip(),
        example['text'],
        truncation='only_second',
        max_length=self._length,
        stride=self._length // 2,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
      )
      answer = example['answers'][0]
      begin, end = answer['start'], answer['start'] + len(answer['text'])
      for window, ids in enumerate(encoded['input_ids']):
        parts = encoded.sequence_ids(window)
        # Characters of the text's tokens; of all others None.
        offsets = [
          pair if part == 1 else None
          for pair, part in zip(encoded['offset_mapping'][window], parts, strict=True)
        ]
        start, stop = _tokens(offsets, begin, end)
        found.append({
          'input_ids': ids,
          'attention_mask': encoded['attention_mask'][window],
          'token_type_ids': encoded['token_type_ids'][window],
          'start_positions': start,
          'end_positions': stop,
          'example': number,
          'offsets': offsets,
        })  # fmt: skip
    return found

  def metrics(self, examples, features, outputs) -> dict[str, float]:
    best: dict[int, tuple[float, str]] = {}
    for feature, starts, ends in zip(features, *outputs, strict=True):
      number = feature['example']
      text = examples[number]['text']
      for score, begin, end in _candidates(feature['offsets'], starts, ends):
        if score > best.get(number, (-np.inf, ''))[0]:
          best[number] = (score, text[begin:end])
    true = {n: [answer['text'] for answer in e['answers']] for n, e in enumerate(examples)}
    return squad.scores({n: best.get(n, (0, ''))[1] for n in true}, true, False)


def _tokens(offsets: Sequence[tuple[int, int] | None], begin: int, end: int) -> tuple[int, int]:
  """First and last token of characters begin:end; those of [CLS] where the window lacks a part."""
  inside = [i for i, pair in enumerate(offsets) if pair]
  if not inside or offsets[inside[0]][0] > begin or offsets[inside[-1]][1] < end:
    return 0, 0
  first = max(i for i in inside if offsets[i][0] <= begin)
  last = min(i for i in inside if offsets[i][1] >= end)
  return first, last


def _candidates(offsets, starts, ends) -> list[tuple[float, int, int]]:
  """(score, first character, one past the last) of the likeliest beginnings and ends."""
  starts, ends = starts[: len(offsets)], ends[: len(offsets)]
  return [
    (starts[first] + ends[last], offsets[first][0], offsets[last][1])
    for first in np.argsort(-starts)[:N_BEST]
    for last in np.argsort(-ends)[:N_BEST]
    if offsets[first] and offsets[last] and first <= last < first + MAX_ANSWER
  ]


KINDS: dict[str, Callable[[Config, Any], Any]] = {
  'classification': Texts,
  'regression': Texts,
  'tagging': Words,
  'span_qa': Answers,
}
