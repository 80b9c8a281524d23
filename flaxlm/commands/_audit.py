"""`python -m flaxlm corpus audit`: which documents are there twice, or in evaluation too."""

import argparse
import itertools
import json
from collections.abc import Mapping
from typing import Any

from flaxlm import terminal
from flaxlm.data import audit, bad_rows, splits
from flaxlm.errors import UserError


def run(args: argparse.Namespace, config: Any) -> None:
  """Audits the text of a config, or of --input, and prints what was found."""
  if args.against and config.task.name:
    raise UserError('corpus audit: --against is for running text; set --config.data.validation')
  terminal.phase('data', config.data.train)
  sets, total = labelled(config) if config.task.name else running(config, args)
  found = audit.audit(sets, args.threshold, args.ngram, args.examples, total)
  terminal.close()
  print(json.dumps(found.as_dict(), ensure_ascii=False) if args.json else table(found))


def running(config: Any, args: argparse.Namespace) -> tuple[dict[str, audit.Located], int]:
  """The documents of each set, and how many they are; of --input nothing is held out."""
  data = config.data
  if args.input:
    parts = {audit.TRAIN: splits.everything(data)}
  else:
    parts = {audit.TRAIN: splits.training(data)} | splits.validation(data)
  if data.test:
    parts['test'] = splits.test(data)
  if args.against:
    parts |= splits.against(data, args.against)
  total = sum(part.num_documents for part in parts.values())
  return {name: part.located for name, part in parts.items()}, total


def labelled(config: Any) -> tuple[dict[str, audit.Located], int]:
  """The texts of the rows of each set, and how many they are."""
  from flaxlm.training.inputs import parsed, rows_of, task_of

  task = task_of(config)
  bad = bad_rows.BadRows(config.data.on_bad_row)
  sets = rows_of(task, config, True, bad)
  if config.data.test:
    sets['test'] = rows_of(task, config, False, bad)['test']
  found = {}
  for name, rows in sets.items():
    found[name] = [
      (where, '\n'.join(task.texts(example)))
      for where, row in rows
      for example in parsed(task, [(where, row)], bad.of(name), lambda _: False)
    ]
  bad.report()
  total = sum(map(len, found.values()))
  return {name: (lambda rows=rows: iter(rows)) for name, rows in found.items()}, total


def table(found: audit.Found) -> str:
  """What was found, for people."""
  lines = [f'{"":24} {"documents":>12} {"exact":>16} {"near":>16}']
  rows: Mapping[str, Any] = found.sets | {f'{n} in train': r for n, r in found.between.items()}
  for name, row in rows.items():
    shares = [f'{row[k]:,} ({row[k] / max(row["documents"], 1):.1%})' for k in ('exact', 'near')]
    lines.append(f'{name:24} {row["documents"]:>12,} ' + ' '.join(f'{x:>16}' for x in shares))
  for kind, examples in itertools.groupby(found.examples, lambda example: example['kind']):
    lines.append(f'\n{kind}:')
    lines += [f'  {e["similarity"]:.2f}  {e["places"][0]}  {e["places"][1]}' for e in examples]
  p = found.parameters
  lines.append(
    f'\nnear: Jaccard similarity of word {p["ngram"]}-grams of at least {p["threshold"]}, among '
    f'texts that share one of {p["bands"]} MinHash bands of {p["rows_in_band"]}'
  )
  return '\n'.join(lines)
