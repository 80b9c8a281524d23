"""Log-likelihoods of texts, perplexity of long documents, and zero-shot choices among answers.

  python -m flaxlm score --workdir=runs/gpt --text='The film was good.' --text='The film good was.'
  python -m flaxlm score --workdir=runs/gpt --input=book.txt --documents=file --stride=64
  python -m flaxlm score --workdir=runs/gpt --input=questions.jsonl --choices-column=choices

Prints one JSON object a text: its log-likelihood (natural logarithm) in total, per token and per
byte, and the perplexity; of several texts the totals last. Masked language models give
pseudo-log-likelihoods (Salazar et al. 2020).

With --choices-column, each row has a list of texts (jsonl) that may follow its text column; printed
is which one is likeliest in total, per token and per byte and, where a label column names the right
one (by its number from 0, its text or its letter), the accuracy of each. --text-column and
--label-column name other columns than those of the run.
"""

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxlm import commandline, terminal
from flaxlm.errors import UserError, flag

NORMS = ('total', 'per_token', 'per_byte')
CHUNK = 32


def main(argv: Sequence[str]) -> None:
  args = _parse(argv)
  terminal.phase('init', f'checkpoint {args.checkpoint} of {args.workdir}')
  from flaxlm.training.experiment import open_model

  experiment, params, _ = open_model(args.workdir, args.checkpoint)
  scorer = _scorer(experiment, params, args)
  terminal.phase('eval', args.input or f'{len(args.text)} texts')
  lines = (
    _choices(experiment, scorer, args) if args.choices_column else _texts(experiment, scorer, args)
  )
  for line in lines:
    terminal.close()
    print(json.dumps(line, ensure_ascii=False), flush=True)


def _scorer(experiment: Any, params: Any, args: argparse.Namespace) -> Any:
  from flaxlm.decoding.scoring import Scorer

  objective, config = experiment.objective, experiment.config
  masked = objective.predicts_masks
  if not objective.prompt and not masked:
    raise UserError(
      f'{args.workdir} was trained with the objective {config.objective.name!r}, which gives '
      'tokens no probability'
    )
  window = args.window or config.max_length
  if window > config.max_length:
    raise UserError(f'--window: rows of the run have {config.max_length} tokens at most')
  stride = args.stride or max(1, window // 2)
  if masked and window < 3:
    raise UserError('--window: a masked model reads two marks and a token at least, so 3')
  if args.end and (masked or objective.prompt('').eos_id is None):
    raise UserError('--end: the texts of this run have no end that it could predict')
  if stride > window:
    raise UserError(f'--stride: must not exceed the window of {window} tokens')
  return Scorer(
    experiment.model, params, objective, experiment.tokenizer, window, stride, args.batch_size
  )


def _texts(experiment: Any, scorer: Any, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
  """A record for each text and, of several, one for all."""
  from flaxlm.data import source

  texts = [('--text', text) for text in args.text]
  if args.input:
    data = dataclasses.replace(_data(experiment, args), documents=args.documents)
    found = source.documents(args.input, data, key='--input', column_key='--text-column')
    texts = found.located()
  total, count = np.zeros(3), 0
  for chunk in _chunks(texts):
    scored = [_scored(scorer, text, where, args) for where, text in chunk]
    for (_, text), log_p in zip(chunk, scorer.log_probabilities(scored), strict=True):
      numbers = float(log_p.astype(np.float64).sum()), len(log_p), len(text.encode())
      shown = text if len(text) <= 200 else text[:200] + '...'
      yield {'text': shown} | _record(*numbers)
      total, count = total + numbers, count + 1
  if not count:
    raise UserError(f'--input: {args.input} has no texts')
  if count > 1:
    yield {'texts': count} | _record(float(total[0]), int(total[1]), int(total[2]))


def _data(experiment: Any, args: argparse.Namespace) -> Any:
  """How the run reads rows, but for columns that the flags name."""
  named = {'text_column': args.text_column, 'label_column': args.label_column}
  named = {field: column for field, column in named.items() if column}
  return dataclasses.replace(experiment.config.data, **named)


def _scored(scorer: Any, text: str, where: str, args: argparse.Namespace) -> Any:
  """What is scored of a text; UserError for what cannot be."""
  try:
    found = scorer.text(text, args.context, args.end)
    if args.context:
      (found,) = scorer.together([found])
  except UserError as error:
    hint = ': give --context' if args.context is None else ''
    raise UserError(f'{error}{hint}') from None
  if not text or not len(found.tokens):
    raise UserError(f'{where}: a text has no tokens: {text[:30]!r}')
  return found


def _chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
  """So many texts or rows at once as fill batches and still give lines now and then."""
  values = iter(values)
  while chunk := list(itertools.islice(values, CHUNK)):
    yield chunk


def _record(log_p: float, tokens: int, size: int) -> dict[str, Any]:
  rounded = lambda value: round(value, 6)
  return {
    'log_likelihood': rounded(log_p),
    'tokens': tokens,
    'bytes': size,
    'per_token': rounded(log_p / tokens),
    'per_byte': rounded(log_p / size),
    'perplexity': rounded(math.exp(min(-log_p / tokens, 700.0))),
    'bits_per_byte': rounded(-log_p / size / math.log(2)),
  }


def _choices(experiment: Any, scorer: Any, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
  """A record for each row and, where rows have labels, the accuracies."""
  from flaxlm.data import source
  from flaxlm.tasks import multiple_choice

  data = _data(experiment, args)
  right, labelled, seen = dict.fromkeys(NORMS, 0), 0, 0
  for chunk in _chunks(source.rows(args.input, data, key='--input')):
    seen += len(chunk)
    questions = [_question(scorer, row, where, data, args) for where, row in chunk]
    flat = [text for _, _, texts in questions for text in texts]
    log_p = iter(scorer.log_probabilities(flat))
    for (where, row), (context, choices, texts) in zip(chunk, questions, strict=True):
      totals = [float(next(log_p).astype(np.float64).sum()) for _ in texts]
      scores = {
        'total': totals,
        'per_token': [p / len(text.tokens) for p, text in zip(totals, texts, strict=True)],
        'per_byte': [p / max(len(c.encode()), 1) for p, c in zip(totals, choices, strict=True)],
      }
      best = {norm: int(np.argmax(values)) for norm, values in scores.items()}
      rounded = {norm: [round(value, 6) for value in values] for norm, values in scores.items()}
      record = {'text': context, 'choices': choices, 'prediction': best, 'log_likelihood': rounded}
      if row.get(data.label_column, '').strip():
        label = multiple_choice.number_of(row[data.label_column], choices, where)
        labelled += 1
        right = {norm: right[norm] + (best[norm] == label) for norm in NORMS}
        record['label'] = label
      yield record
  if not seen:
    raise UserError(f'--input: {args.input} has no rows')
  if labelled:
    yield {'rows': labelled, 'accuracy': {norm: n / labelled for norm, n in right.items()}}


def _question(
  scorer: Any, row: Mapping[str, str], where: str, data: Any, args: argparse.Namespace
) -> tuple[str, list[str], list[Any]]:
  """(context, choices, what is scored of each) of a row."""
  from flaxlm.data import cells
  from flaxlm.tasks import columns

  context = cells.column(row, data.text_column, where, '--text-column')
  cell = cells.column(row, args.choices_column, where, '--choices-column')
  choices = columns.strings(cell, 'the choices', where)
  if len(choices) < 2:
    raise UserError(f'{where}: {len(choices)} choices, there must be two or more')
  texts = scorer.together([scorer.text(choice, context, args.end) for choice in choices])
  try:
    for text in texts:
      scorer.check(text)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None
  if not all(len(text.tokens) for text in texts):
    raise UserError(f'{where}: a choice has no tokens')
  return context, choices, texts


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = commandline.Parser(__doc__)
  commandline.add_run_flags(parser)
  parser.add_argument('--text', action='append', default=[], help='may be given several times')
  parser.add_argument('--input', default='', help='file or glob of documents or rows')
  parser.add_argument(
    '--documents', default='auto', choices=('auto', 'row', 'blank_line', 'file'),
    help='what a document of --input is (auto: a row of a table, else between blank lines)',
  )  # fmt: skip
  parser.add_argument('--context', help='text before each text; the source of an encoder-decoder')
  parser.add_argument('--text-column', default='', help="column of the text; the run's if unset")
  parser.add_argument('--label-column', default='', help="column of the label; the run's if unset")
  parser.add_argument('--choices-column', default='', help='column of a list of texts to choose of')
  parser.add_argument('--end', action='store_true', help='the end of a text (EOS) counts too')
  parser.add_argument('--window', type=int, default=0, help='tokens read at once; the longest row')
  parser.add_argument('--stride', type=int, default=0, help='tokens between windows; half of one')
  parser.add_argument('--batch-size', type=int, default=8, help='rows at once')
  args = parser.parse(argv)
  if bool(args.text) == bool(args.input):
    raise UserError('one of --text and --input is needed' + ', not both' * bool(args.text))
  if args.choices_column and (args.text or args.context is not None):
    raise UserError('--choices-column: its rows come from --input, with the text before them')
  if args.documents != 'auto' and (args.text or args.choices_column):
    raise UserError('--documents: is of an --input of running text')
  for name in ('window', 'stride', 'batch_size'):
    least = 1 if name == 'batch_size' else 0
    if getattr(args, name) < least:
      raise UserError(f'{flag(name)}: must be at least {least}')
  return args
