"""Speed of the loader, beside that of the step and what a fast accelerator would ask for.

  python benchmarks/loader.py [--workers=2] [--batches=20] [RECIPE ...]

For each recipe of running text, at its published size, in real (not padding) tokens per second:
what one core makes (by CPU time, so that a busy machine does not matter), and what `--workers`
processes hand over (data.num_workers, by the clock), over `--batches` batches after the first.
Beside them, the step of the recipe's `mini` variant on this machine, and what an accelerator reads
that reaches `--tflops` of the model's operations (flaxlm/models/flops.py) at the published size,
with the cores that takes: 400 TFLOP/s is 40 % of the bfloat16 peak of an H100. The tokenizer is one
of bytes, so that nothing is trained.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from flaxlm import host
from flaxlm.config import recipe
from flaxlm.models.flops import train_step_flops
from flaxlm.training.experiment import build
from flaxlm.training.step import real_tokens

ROOT = pathlib.Path(__file__).parent.parent
RECIPES = (
  'gpt2.py:124m',
  'bert.py:base',
  'modernbert.py:base',
  't5.py:base',
  'bart.py:base',
  'xlnet.py:base',
)
HEADER = '| recipe | rows x tokens | one core | {} workers | step of mini | {} TFLOP/s | cores |'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('recipes', nargs='*', default=RECIPES)
  parser.add_argument('--data', default='embedded')
  parser.add_argument('--workers', type=int, default=2)
  parser.add_argument('--batches', type=int, default=20)
  parser.add_argument('--steps', type=int, default=4, help='of the mini variant; 0: none')
  parser.add_argument('--tflops', type=float, default=400.0)
  args = parser.parse_args()
  host.prepare()  # as the commands do
  lines = [measure(name, args) for name in args.recipes]
  print(f'tokens per second; jax {jax.__version__}, {jax.devices()[0].device_kind}')
  print(HEADER.format(args.workers, f'{args.tflops:.0f}') + '\n|---|---|---|---|---|---|---|')
  print('\n'.join(lines))


def measure(name: str, args: argparse.Namespace) -> str:
  """A line of the table."""
  experiment = experiment_of(name, args, workers=0)
  data = experiment.train_data
  batch = data.batch(0)
  shapes = {key: value.shape for key, value in batch.items()}
  transform = experiment.config.objective.name == 'masked_lm'
  flops = train_step_flops(experiment.config.model, shapes, transform)
  needed = args.tflops * 1e12 / flops * real_tokens(batch)
  core = core_rate(data, args.batches)
  workers = rate(experiment_of(name, args, workers=args.workers).train_data, args.batches)
  rows, length = shapes.get('inputs') or shapes['encoder_inputs']
  step = f'{step_rate(name, args):,.0f}' if args.steps else ''
  return (
    f'| {name} | {rows} x {length} | {core:,.0f} | {workers:,.0f} | {step} | {needed:,.0f} '
    f'| {needed / core:.1f} |'
  )


def experiment_of(name: str, args: argparse.Namespace, workers: int):
  overrides = [('data.train', args.data), ('data.num_workers', str(workers))]
  overrides += [('tokenizer.name', 'bytes')]
  config = recipe.load(str(ROOT / 'configs' / name), overrides)
  with tempfile.TemporaryDirectory() as workdir:
    return build(config, workdir)


def core_rate(data, batches: int) -> float:
  """Real tokens per second of CPU time, of one thread."""
  begin, tokens = time.process_time(), 0
  for step in range(1, batches + 1):
    tokens += int(real_tokens(data.batch(step)))
  return tokens / (time.process_time() - begin)


def rate(data, batches: int) -> float:
  """Real tokens per second of `iterate`, after the batches that were made ahead."""
  made = data.iterate(0)
  for _ in range(max(data.config.data.num_workers, data.config.data.prefetch)):
    next(made)
  begin = time.perf_counter()
  tokens = sum(int(real_tokens(next(made))) for _ in range(batches))
  seconds = time.perf_counter() - begin
  made.close()
  return tokens / seconds


def step_rate(name: str, args: argparse.Namespace) -> float:
  """Real tokens per second of the step of the mini variant: the median of `--steps`."""
  experiment = experiment_of(f'{name.partition(":")[0]}:mini', args, workers=0)
  batch, times = experiment.train_data.batch(0), []
  state = experiment.init_state()
  for _ in range(args.steps + 1):
    begin = time.perf_counter()
    state, metrics = experiment.train_step(state, experiment.put(batch))
    jax.block_until_ready((state, metrics))
    times.append(time.perf_counter() - begin)
  return float(real_tokens(batch)) / float(np.median(times[1:]))


if __name__ == '__main__':
  main()
