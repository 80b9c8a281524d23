"""Predict a file's rows with a fine-tuned model, one JSON object a line.

  python -m flaxlm predict --workdir=runs/sst2 --input=reviews.jsonl --output=predictions.jsonl
  python -m flaxlm predict --workdir=runs/translate --input=news.txt --num-beams=5
  echo 'A truly good film.' | python -m flaxlm predict --workdir=runs/sst2

The input has the format and the columns of the training rows (--config.data.text_column= and
--config.task.pair_column= name others), or is text with a row a line; `-` is standard input, of
json objects or of text. A blank line of text is a row that cannot be used, except at the end.
Labels are not needed. A run that was tuned to write (seq2seq, completion) writes; the flags say
how. Without `--output` the lines go to the terminal; with it, a command that was stopped goes on
behind the rows it has done.
"""

import argparse
import codecs
import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from flaxlm import commandline, terminal
from flaxlm.commands import _resumable, _writing
from flaxlm.errors import UserError

# Rows that are read, predicted and written together, where nothing is generated.
CHUNK = 256
# (numbers of the rows in the input, their examples) -> records.
Predictor = Callable[[Sequence[int], Sequence[Mapping[str, Any]]], Iterator[dict[str, Any]]]


def main(argv: Sequence[str]) -> None:
  args, options = _parse(argv)
  terminal.phase('init', args.workdir)
  from flaxlm.evaluation import changes
  from flaxlm.training import checkpoint
  from flaxlm.training.digest import digest
  from flaxlm.training.experiment import open_model

  if not args.checkpoint:
    args.checkpoint = checkpoint.best_or_latest(epath.Path(args.workdir) / 'checkpoints')
  change = lambda saved: changes.changed(saved, args.overrides, changes.READING, 'predict')
  experiment, params, step = open_model(args.workdir, args.checkpoint, change)
  if not experiment.config.task.name:
    raise UserError(
      f'{args.workdir} was trained without a task: it does not predict rows; to write texts, use '
      'python -m flaxlm generate'
    )
  size, predict = _predictor(experiment, params, args, options)
  terminal.phase('data', args.input)
  with _local(args.input) as place:
    # Another training may have come to the same step. Without a file nothing is gone on with.
    weights = [step, digest(params)] if args.output else []
    _run(args, experiment, place, weights, size, predict)


def _run(
  args: argparse.Namespace,
  experiment: Any,
  place: str,
  weights: Any,
  size: int,
  predict: Predictor,
) -> None:
  """Predicts the rows of `place`, `size` at once, in order; `weights`: a digest of the model's."""
  from flaxlm.data.bad_rows import BadRows

  policy = args.on_bad_row or experiment.config.data.on_bad_row
  bad = BadRows(policy)
  # What standard input holds lies in a folder that is not the user's.
  hidden = f'{pathlib.Path(place).parent}/' if args.input == '-' else ''
  rows = _numbered(experiment, place, bad, hidden)
  if not rows:
    bad.report()
    raise UserError(f'{args.input} has no rows' + ' that can be used' * bool(bad.counts))
  experiment.task.settle(example for _, example in rows)
  terminal.phase('decode' if experiment.objective.prompts else 'eval', args.input)
  with _resumable.lines(args.output, _identity(args, experiment, place, weights)) as output:
    if output.done:
      terminal.say(f'going on behind row {output.done} of {len(rows)}')
    with terminal.cuts(), terminal.bar('predict', len(rows), 'rows') as bar:
      bar.advance(output.done)
      for start in range(output.done, len(rows), size):
        numbers, examples = zip(*rows[start : start + size], strict=True)
        records = zip(numbers, predict(numbers, examples), strict=True)
        # Where rows are left out, a line does not tell by its place which row it is of.
        lines = [{'row': n} | record if policy == 'skip' else record for n, record in records]
        output.write(lines, start + len(lines))
        bar.advance(len(lines))
  bad.report()


def _numbered(
  experiment: Any, place: str, bad: Any, hidden: str = ''
) -> list[tuple[int, dict[str, Any]]]:
  """(number in the input from 0, example) of each row that can be used; `bad` counts the others.

  All are read before the first is predicted, so that a bad row that stops the command does so at
  once, and one that resumes counts the same rows as one that was left alone. `hidden`: what is
  left out at the beginning of where a row stands.
  """
  from flaxlm.training.inputs import parsed

  handler = bad.of('input')
  found: list[tuple[int, dict[str, Any]]] = []
  for where, row in _rows(experiment, place, handler):
    number = len(found) + bad.counts.get('input', 0)  # Every row before it is in one of them.
    located = where.removeprefix(hidden), row
    examples = parsed(experiment.task, [located], handler, lambda _: False)
    found += [(number, example) for example in examples]
  return found


def _predictor(
  experiment: Any, params: Any, args: argparse.Namespace, options: _writing.Options
) -> tuple[int, Predictor]:
  """(rows at once, what predicts them): by writing if the objective can, else by its `predict`."""
  if experiment.objective.prompts:
    writer = _writing.writer(experiment, params, args.workdir)
    return options.batch_size, _written(experiment, writer, options)
  if args.given:
    raise UserError(f'{args.given[0]}: {args.workdir} was not tuned to write texts')
  return CHUNK, _labelled(experiment, params)


def _labelled(experiment: Any, params: Any) -> Predictor:
  from flaxlm.data import pipeline
  from flaxlm.evaluation import evaluator

  def predict(_: Sequence[int], examples: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    items = experiment.objective.items(examples)
    packed = pipeline.PackedItems(experiment.objective, items, None)
    data = pipeline.EvalPipeline(experiment.config, experiment.objective, packed)
    return experiment.task.records(evaluator.predictions(experiment, params, data), examples)

  return predict


def _written(experiment: Any, writer: Any, options: _writing.Options) -> Predictor:
  longest = options.max_new_tokens or experiment.config.max_new_tokens
  how = _writing.how(options, longest)

  def predict(
    numbers: Sequence[int], examples: Sequence[Mapping[str, Any]]
  ) -> Iterator[dict[str, Any]]:
    prompts = experiment.objective.prompts(examples, longest)
    draws = [(options.seed, number) for number in numbers]
    found = writer.write(prompts, how, draws, options.stop)
    texts = [outputs[0].text.strip() for outputs in found]
    for record, outputs in zip(_records(experiment.task, examples, texts), found, strict=True):
      if options.num_beams:
        best = outputs[: options.num_best]
        record['best'] = [{'text': o.text.strip(), 'score': round(o.score, 6)} for o in best]
      yield record

  return predict


def _records(
  task: Any, examples: Sequence[Mapping[str, Any]], texts: Sequence[str]
) -> list[dict[str, Any]]:
  """What is said of rows for which these texts were written: of a classifier, which labels."""
  if task.writes_labels:
    return list(task.records({'output_ids': range(len(texts)), 'outputs': texts}, examples))
  return [dict(row) | {'prediction': text} for row, text in zip(examples, texts, strict=True)]


def _rows(experiment: Any, place: str, bad: Any) -> Iterator[tuple[str, dict[str, str]]]:
  """Rows of the files of the task's kind; of plain text, a line each."""
  from flaxlm.data import source

  readers = dict(experiment.task.readers)
  own = readers.get(source.ANY_OTHER)
  column = experiment.task.line_column
  if column is None:
    # A file with no ending of a table is the task's, if it reads such files.
    column = '' if own else experiment.config.data.text_column

  def read(path: Any, config: Any, bad: Any) -> Iterator[tuple[str, dict[str, str]]]:
    if own and not _is_plain(path, column):
      yield from own(path, config, bad)
      return
    if source.kind(path) == '.json':
      raise UserError(f'{path}: json rows come as .jsonl, an object a line')
    blank: list[int] = []  # Of a task, texts that are empty; at the end of a file, no rows.
    for number, text in source.whole_lines(path, bad):
      if not text.strip():
        blank.append(number)
        continue
      yield from ((f'{path}:{empty}', {column: ''}) for empty in blank)
      blank.clear()
      yield f'{path}:{number}', {column: text}

  if column:
    readers[source.ANY_OTHER] = read
  return source.rows(place, experiment.config.data, 'test', readers, bad, '--input')


def _is_plain(path: Any, column: str) -> bool:
  """Whether text is no table: its first line has one cell, which is not the column's name."""
  from flaxlm.data import source

  _, first = next(source.lines(path, 'surrogateescape'), (1, ''))
  return '\t' not in first and first != column


@contextlib.contextmanager
def _local(place: str) -> Iterator[str]:
  """The place itself or, for `-`, a file of what standard input holds, named so in messages."""
  if place != '-':
    yield place
    return
  content = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8)
  ending = 'jsonl' if content.lstrip().startswith(b'{') else 'txt'
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / f'stdin.{ending}'
    file.write_bytes(content)
    try:
      yield str(file)
    except UserError as error:
      raise UserError(str(error).replace(f'{folder}/', '')) from None


def _identity(
  args: argparse.Namespace, experiment: Any, place: str, weights: Any
) -> dict[str, Any]:
  """What output that was begun must have in common with this command to be gone on with."""
  from flaxlm.data import cache, source, tfds

  data = experiment.config.data
  if place.startswith('tfds:'):
    content = tfds.identity(place, data, 'test')
  else:
    paths = [path for part in source.parts(place) for path in source.files(part, '--input')]
    content = [cache.digest(data, path) for path in paths]
  flags = {k: v for k, v in vars(args).items() if k not in ('output', 'batch_size', 'debug')}
  return {'flags': flags, 'weights': weights, 'input': content}


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, _writing.Options]:
  parser = commandline.Parser(__doc__, overrides=True)
  commandline.add_run_flags(
    parser, checkpoint=None, note='; best unless given, or latest if none was evaluated'
  )
  parser.add_argument('--input', default='-', help='file or glob of rows; -: standard input')
  parser.add_argument('--output', default='', help='file to write')
  parser.add_argument(
    '--on-bad-row', choices=('error', 'skip'), help="as config.data.on_bad_row; the run's if unset"
  )
  _writing.add_flags(parser, temperature=0.0, max_new_tokens=None)
  args = parser.parse(argv)
  args.given = _writing.given(args, parser)
  return args, _writing.Options.of(args)
