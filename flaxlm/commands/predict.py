"""Predict the labels of a file's rows with a fine-tuned model, one JSON object a line.

  python -m flaxlm predict --workdir=runs/sst2 --input=reviews.jsonl --output=predictions.jsonl

The input has the format and the columns of the training rows; labels are not needed. Without
`--output` the lines go to the terminal.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from os.path import expanduser
from typing import Any

from etils import epath

from flaxlm import commandline, terminal
from flaxlm.errors import UserError


def main(argv: Sequence[str]) -> None:
  parser = commandline.Parser(__doc__)
  parser.add_argument(
    '--workdir', required=True, type=expanduser, help='folder of the fine-tuned run'
  )
  parser.add_argument('--checkpoint', default='best', help='latest, best, average:N or a step')
  parser.add_argument('--input', required=True, help='file or glob of rows')
  parser.add_argument('--output', default='', help='file to write')
  args = parser.parse(argv)
  terminal.phase('init', f'checkpoint {args.checkpoint} of {args.workdir}')
  from flaxlm.evaluation import evaluator
  from flaxlm.training.experiment import open_model

  experiment, params, _ = open_model(args.workdir, args.checkpoint)
  if not experiment.config.task.name:
    raise UserError(f'{args.workdir} was trained without a task: it does not predict labels')
  terminal.phase('data', args.input)
  experiment = _with_rows(experiment, args.input)
  terminal.phase('eval', args.input)
  predictions = evaluator.evaluate(experiment, params, 'input').predictions
  records = experiment.task.records(predictions, experiment.examples['input'])
  text = ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records)
  terminal.close()
  if args.output:
    epath.Path(args.output).write_text(text)
  else:
    sys.stdout.write(text)


def _with_rows(experiment: Any, place: str) -> Any:
  """The experiment with the rows of `place` as its evaluation set 'input'."""
  from flaxlm.data import pipeline, source
  from flaxlm.data.bad_rows import BadRows
  from flaxlm.training.experiment import parsed

  config, objective, task = experiment.config, experiment.objective, experiment.task
  bad = BadRows(config.data.on_bad_row)
  readers = getattr(task, 'readers', {})
  rows = source.rows(place, config.data, 'test', readers, bad.of('input'))
  examples = parsed(task, rows, False, bad.of('input'))
  bad.report()
  if not examples:
    raise UserError(f'{place} has no rows')
  packed = pipeline.PackedItems(objective, objective.items(examples), None)
  data = pipeline.EvalPipeline(config, objective, packed)
  return dataclasses.replace(experiment, eval_data={'input': data}, examples={'input': examples})
