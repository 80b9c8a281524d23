"""Does pretraining pay? Each family, pretrained on unlabelled IMDB reviews, then SST-2.

  python benchmarks/pretraining_pays.py --data=DATA --workdir=runs/pays

For each family: one pretraining run; then, with all 6,920 labelled rows and with 500 of them, the
pretrained trunk against the same architecture from scratch. Both arms choose the learning rate
among the same three by dev accuracy (seed 0), then run five seeds; the checkpoint that was best on
dev is evaluated on test, once. Rows are packed. The table gives mean test accuracy, the gain and
its 95 % Welch interval.

Every run has a folder of its own, and a run that is complete is not repeated, so that the script
goes on where it was stopped; with --family several can share a machine. DATA holds
imdb/unsup.tsv.xz and sst2/{train,dev,test}.tsv.
"""

import argparse
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
FAMILIES = {'bert': 'encoder', 'gpt2': 'decoder', 't5': 'encoder_decoder'}
# Half an hour on two cores is short for masked words. BERT's own schedule begins on short rows, too
# (Devlin et al. 2019, appendix A.2); more masks are more to learn from (Wettig et al. 2023), and
# the second term is left out, as in RoBERTa.
PRETRAINING = {
  'bert': [
    ('data.max_length', '64'),
    ('global_batch_size', '32'),
    ('objective.mask_rate', '0.4'),
    ('objective.pairs', 'none'),
  ]
}
RATES = (3e-4, 1e-3, 3e-3)
SEEDS = range(5)
# Rows -> passes over them and steps between evaluations.
SIZES = {6920: (3, 100), 500: (12, 24)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--family', choices=FAMILIES, action='append', help='all if left out')
  args = parser.parse_args()
  host.keep_freed_memory()  # as the commands do
  pretrained = {family: pretrain(args, family) for family in args.family or FAMILIES}
  rows = []
  for family, workdir in pretrained.items():
    for size in SIZES:
      rows.append(compare(args, family, size, workdir))
      print_table(rows)
  (args.workdir / 'table.json').write_text(json.dumps(rows, indent=2))


def pretrain(args: argparse.Namespace, family: str) -> pathlib.Path:
  """Pretrains `configs/FAMILY.py:mini`; returns the workdir."""
  workdir = args.workdir / family / 'pretrained'
  overrides = [
    ('data.train', str(args.data / 'imdb/unsup.tsv.xz')),
    ('data.holdout', '0.02'),
    ('tokenizer.lowercase', 'True'),  # SST-2 is lower case
    *PRETRAINING.get(family, []),
  ]
  train(f'{family}.py:mini', workdir, overrides)
  return workdir


def compare(args, family: str, size: int, pretrained: pathlib.Path) -> dict:
  """Both arms at one size: test accuracies, rates, gain and interval."""
  result = {'family': family, 'rows': size}
  for arm in ('scratch', 'pretrained'):
    run = lambda rate, seed, arm=arm: finetune(args, family, size, pretrained, arm, rate, seed)
    result[f'{arm}_rate'] = max(RATES, key=lambda rate: run(rate, 0)['dev'])
    result[arm] = [run(result[f'{arm}_rate'], seed)['test'] for seed in SEEDS]
  a, b = np.array(result['pretrained']), np.array(result['scratch'])
  interval = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
  return result | {'gain': a.mean() - b.mean(), 'interval': [interval.low, interval.high]}


def finetune(args, family, size, pretrained, arm, rate, seed) -> dict[str, float]:
  """One run: {'dev', 'test'} accuracy of the checkpoint that was best on dev."""
  workdir = args.workdir / family / f'{arm}-{size}-{rate:g}-{seed}'
  done = workdir / 'accuracy.json'
  if done.exists():
    return json.loads(done.read_text())
  epochs, every = SIZES[size]
  sst2 = args.data / 'sst2'
  overrides = [
    ('data.train', str(sst2 / 'train.tsv')),
    ('data.validation', str(sst2 / 'dev.tsv')),
    ('data.test', str(sst2 / 'test.tsv')),
    ('data.text_column', '0'),
    ('data.label_column', '1'),
    ('data.max_rows', str(size)),
    ('num_epochs', str(epochs)),
    ('global_batch_size', '8'),
    ('optimizer.learning_rate', str(rate)),
    ('seed', str(seed)),
    ('evaluation.every_steps', str(every)),
    ('checkpoint.every_steps', '1000000'),
    ('checkpoint.keep_last', '1'),
    ('checkpoint.best_metric', 'accuracy'),
  ]
  if arm == 'pretrained':
    overrides.append(('init_from', str(pretrained)))
  else:
    overrides.append(('tokenizer.path', str(pretrained / 'tokenizer')))
  train(f'classify.py:{FAMILIES[family]}', workdir, overrides)
  result = evaluator.evaluate_workdir(str(workdir), 'best')
  accuracy = {'dev': result['validation']['accuracy'], 'test': result['test']['accuracy']}
  done.write_text(json.dumps(accuracy))
  return accuracy


def train(name: str, workdir: pathlib.Path, overrides: list[tuple[str, str]]) -> None:
  config = recipe.load(str(ROOT / 'configs' / name), overrides)
  begin = time.time()
  loop.train(config, str(workdir), overrides)
  print(f'{workdir}: {time.time() - begin:.0f} s', flush=True)


def print_table(rows: list[dict]) -> None:
  print('| family | rows | scratch | pretrained | gain | 95 % interval | rates |')
  print('|---|---|---|---|---|---|---|')
  for row in rows:
    mean = lambda arm: f'{np.mean(row[arm]):.4f} ± {np.std(row[arm], ddof=1):.4f}'  # noqa: B023
    low, high = row['interval']
    rates = f'{row["scratch_rate"]:g}, {row["pretrained_rate"]:g}'
    print(
      f'| {row["family"]} | {row["rows"]} | {mean("scratch")} | {mean("pretrained")} '
      f'| {row["gain"]:+.4f} | [{low:+.4f}, {high:+.4f}] | {rates} |',
      flush=True,
    )


if __name__ == '__main__':
  main()
