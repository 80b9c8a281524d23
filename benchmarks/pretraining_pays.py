"""Does pretraining pay? Families pretrained on unlabelled IMDB reviews, then a task with few rows.

  python benchmarks/pretraining_pays.py sst2 --data=DATA --workdir=runs/pays
  python benchmarks/pretraining_pays.py scitldr --data=DATA --workdir=runs/pays --family=t5

For each family: one pretraining run; then the pretrained trunk against the same architecture from
scratch. `sst2`: with all 6,920 labelled rows and with 500 of them, accuracy. `scitldr`: summaries
of papers' abstracts, ROUGE, beside that of the first sentence (lead-1); for t5, pretrained as BART
is, by restoring whole texts, which teaches a decoder to copy. Both arms choose the learning rate
among the same three by dev (seed 0), then run five seeds; the checkpoint that was best on dev is
evaluated on test, once. Rows are packed. The table gives the mean of each arm on test, the gain and
its 95 % Welch interval.

Every run has a folder of its own, and a run that is complete is not repeated, so that the script
goes on where it was stopped; with --family several can share a machine. DATA holds
imdb/unsup.tsv.xz, sst2/ and scitldr_a/ with the public files.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import numpy as np
import scipy.stats

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from flaxlm import host
from flaxlm.config import recipe
from flaxlm.evaluation import evaluator
from flaxlm.training import loop

ROOT = pathlib.Path(__file__).parent.parent
SPLITS = {'train': 'train', 'validation': 'dev', 'test': 'test'}
FAMILIES = {'bert': 'encoder', 'gpt2': 'decoder', 't5': 'encoder_decoder'}
# More steps than the recipes have, each within half an hour on two cores. That is short for masked
# words, which take the longest: BERT's own schedule begins on short rows, too (Devlin et al. 2019,
# appendix A.2); more masks are more to learn from (Wettig et al. 2023), and the second term is left
# out, as in RoBERTa. With learned positions it would find little in that time but how frequent
# words are (docs/results.md): BERT has rotary ones here, in both arms. T5's rates are shares of a
# parameter's size (configs/t5.py), in both arms.
PRETRAINING = {
  'gpt2': [('total_steps', '2400')],
  't5': [('total_steps', '3000'), ('objective.noise_density', '0.5')],
  'bert': [
    ('total_steps', '8000'),
    ('model.position', 'rope'),
    ('data.max_length', '64'),
    ('global_batch_size', '32'),
    ('objective.mask_rate', '0.4'),
    ('objective.pairs', 'none'),
  ],
}
FINETUNING = {
  'bert': [('model.position', 'rope')],
  'gpt2': [],
  't5': [('optimizer.name', 'adamwscale')],
}
# A post-norm encoder diverges at the highest of a decoder's; T5's are shares of parameters.
RATES = {'bert': (1e-4, 3e-4, 1e-3), 'gpt2': (3e-4, 1e-3, 3e-3), 't5': (3e-3, 1e-2, 3e-2)}
SEEDS = range(5)


@dataclasses.dataclass(frozen=True)
class Task:
  """recipes: family -> recipe; sizes: rows -> (passes over them, steps between evaluations).

  metrics: of the table; the first chooses rates and checkpoints. fields: besides those of all.
  pretraining: fields of its pretraining, in place of those of PRETRAINING.
  """

  recipes: dict[str, str]
  files: dict[str, str]
  sizes: dict[int, tuple[int, int]]
  metrics: tuple[str, ...]
  fields: tuple[tuple[str, str], ...]
  pretraining: tuple[tuple[str, str], ...] = ()


TASKS = {
  'sst2': Task(
    {family: f'classify.py:{kind}' for family, kind in FAMILIES.items()},
    {split: f'sst2/{file}.tsv' for split, file in SPLITS.items()},
    {6920: (3, 100), 500: (12, 24)},
    ('accuracy',),
    (('data.text_column', '0'), ('data.label_column', '1')),
  ),
  'scitldr': Task(
    {'t5': 'summarize.py:encoder_decoder'},
    {split: f'scitldr_a/{file}.jsonl.xz' for split, file in SPLITS.items()},
    {1992: (4, 250)},
    ('rouge1', 'rouge2', 'rougeL'),
    (
      ('data.text_column', 'source'), ('task.target_column', 'target'),
      ('data.max_length', '256'), ('data.max_target_length', '64'), ('objective.marks', 'bart'),
    ),
    (('total_steps', '1500'), ('objective.name', 'denoising')),
  ),
}  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('task', choices=TASKS)
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--family', choices=FAMILIES, action='append', help='all if left out')
  args = parser.parse_args()
  host.prepare()  # as the commands do
  task = TASKS[args.task]
  for family in args.family or task.recipes:
    if family not in task.recipes:
      parser.error(f'{args.task} is for {", ".join(task.recipes)}')
  pretrained = {family: pretrain(args, family) for family in args.family or task.recipes}
  rows = []
  for family, workdir in pretrained.items():
    for size in task.sizes:
      rows += compare(args, family, size, workdir)
      print_table(rows)
  (args.workdir / f'{args.task}.json').write_text(json.dumps(rows, indent=2))


def pretrain(args: argparse.Namespace, family: str) -> pathlib.Path:
  """Pretrains `configs/FAMILY.py:mini`; returns the workdir."""
  own = TASKS[args.task].pretraining
  workdir = args.workdir / family / (f'pretrained-{args.task}' if own else 'pretrained')
  overrides = [
    ('data.train', str(args.data / 'imdb/unsup.tsv.xz')),
    ('data.holdout', '0.02'),
    ('tokenizer.lowercase', 'True'),  # SST-2 is lower case
    *(own or PRETRAINING[family]),
  ]
  train(f'{family}.py:mini', workdir, overrides)
  return workdir


def compare(args, family: str, size: int, pretrained: pathlib.Path) -> list[dict]:
  """Both arms at one size: of each metric the values on test, rates, gain and interval."""
  task, rates, found = TASKS[args.task], {}, {}
  for arm in ('scratch', 'pretrained'):
    run = lambda rate, seed, arm=arm: finetune(args, family, size, pretrained, arm, rate, seed)
    rates[arm] = max(RATES[family], key=lambda rate: run(rate, 0)['validation'][task.metrics[0]])
    found[arm] = [run(rates[arm], seed)['test'] for seed in SEEDS]
  rows = []
  for metric in task.metrics:
    values = {arm: np.array([test[metric] for test in tests]) for arm, tests in found.items()}
    a, b = values['pretrained'], values['scratch']
    interval = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    rows.append({
      'family': family,
      'rows': size,
      'metric': metric,
      'rates': rates,
      **{arm: value.tolist() for arm, value in values.items()},
      'gain': a.mean() - b.mean(),
      'interval': [interval.low, interval.high],
      'lead': found['scratch'][0].get('lead_1', {}).get(metric),
    })  # fmt: skip
  return rows


def finetune(args, family, size, pretrained, arm, rate, seed) -> dict[str, dict]:
  """One run: split -> metrics of the checkpoint that was best on dev."""
  task = TASKS[args.task]
  workdir = args.workdir / family / f'{args.task}-{arm}-{size}-{rate:g}-{seed}'
  done = workdir / 'found.json'
  if done.exists():
    return json.loads(done.read_text())
  epochs, every = task.sizes[size]
  overrides = [
    *((f'data.{split}', str(args.data / path)) for split, path in task.files.items()),
    *task.fields,
    *FINETUNING[family],
    ('data.max_rows', str(size)),
    ('num_epochs', str(epochs)),
    ('global_batch_size', '8'),
    ('optimizer.learning_rate', str(rate)),
    ('seed', str(seed)),
    ('evaluation.every_steps', str(every)),
    ('checkpoint.every_steps', '1000000'),
    ('checkpoint.keep_last', '1'),
    ('checkpoint.best_metric', task.metrics[0]),
  ]
  if arm == 'pretrained':
    overrides.append(('init_from', str(pretrained)))
  else:
    overrides.append(('tokenizer.path', str(pretrained / 'tokenizer')))
  train(task.recipes[family], workdir, overrides)
  result = evaluator.evaluate_workdir(str(workdir), 'best')
  found = {split: result[split] for split in ('validation', 'test')}
  done.write_text(json.dumps(found))
  return found


def train(name: str, workdir: pathlib.Path, overrides: list[tuple[str, str]]) -> None:
  config = recipe.load(str(ROOT / 'configs' / name), overrides)
  begin = time.time()
  loop.train(config, str(workdir), overrides)
  print(f'{workdir}: {time.time() - begin:.0f} s', flush=True)


def print_table(rows: list[dict]) -> None:
  print('| family | rows | metric | scratch | pretrained | gain | 95 % interval | rates | lead-1 |')
  print('|---|---|---|---|---|---|---|---|---|')
  for row in rows:
    mean = lambda arm: f'{np.mean(row[arm]):.4f} ± {np.std(row[arm], ddof=1):.4f}'  # noqa: B023
    low, high = row['interval']
    rates = ', '.join(f'{rate:g}' for rate in row['rates'].values())
    lead = '' if row['lead'] is None else f'{row["lead"]:.4f}'
    cells = [
      row['family'], row['rows'], row['metric'], mean('scratch'), mean('pretrained'),
      f'{row["gain"]:+.4f}', f'[{low:+.4f}, {high:+.4f}]', rates, lead,
    ]  # fmt: skip
    print(f'| {" | ".join(map(str, cells))} |', flush=True)


if __name__ == '__main__':
  main()
