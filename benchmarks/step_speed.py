"""Speed of the training step: real tokens per second, and model FLOPs utilisation.

  python benchmarks/step_speed.py [--data=FILE] [--steps=20] [RECIPE ...]

For each recipe (those for two cores unless named): real (not padding) tokens per second of the
step, of the loader alone, and the step's model FLOPs (flaxlm/models/flops.py) over the rate of a
plain float32 matrix product, 2048 x 2048 x 2048, measured in the same process just before and after
the steps. Times are the median over the steps, with the fastest and slowest tenth.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from flaxlm import host
from flaxlm.config import recipe
from flaxlm.models.flops import train_step_flops
from flaxlm.training.experiment import build
from flaxlm.training.step import real_tokens

ROOT = pathlib.Path(__file__).parent.parent
RECIPES = ('nanogpt_char.py', 'gpt2.py:mini', 'bert.py:mini', 't5.py:mini')
HEADER = (
  '| recipe | ms a step (10 %, 90 %) | tokens/s | loader tokens/s | GFLOP/s | product | MFU |'
)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('recipes', nargs='*', default=RECIPES)
  parser.add_argument('--data', default='embedded')
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--precision', default='float32')
  args = parser.parse_args()
  host.prepare()  # as the commands do
  lines = [measure(name, args) for name in args.recipes]
  device = jax.devices()[0]
  print(f'{device.device_kind}, {jax.device_count()} device(s), jax {jax.__version__}')
  print(HEADER + '\n|---|---|---|---|---|---|---|')
  print('\n'.join(lines))


def measure(name: str, args: argparse.Namespace) -> str:
  overrides = [('data.train', args.data), ('precision', args.precision)]
  with tempfile.TemporaryDirectory() as workdir:
    config = recipe.load(str(ROOT / 'configs' / name), overrides)
    experiment = build(config, workdir)
  config, batches = experiment.config, []
  begin = time.perf_counter()
  for step in range(args.steps):
    batches.append(experiment.train_data.batch(step))
  loading = time.perf_counter() - begin
  tokens = np.mean([real_tokens(batch) for batch in batches])
  state = experiment.init_state()
  for batch in batches[:3]:
    state, _ = experiment.train_step(state, experiment.put(batch))
  jax.block_until_ready(state)
  before, times = product_rate(), []
  for batch in batches:
    begin = time.perf_counter()
    state, metrics = experiment.train_step(state, experiment.put(batch))
    jax.block_until_ready((state, metrics))
    times.append(time.perf_counter() - begin)
  product = (before + product_rate()) / 2
  shapes = {key: value.shape for key, value in batches[0].items()}
  transform = config.objective.name == 'masked_lm'
  low, seconds, high = np.quantile(times, [0.1, 0.5, 0.9])
  rate = train_step_flops(config.model, shapes, transform) / seconds
  return (
    f'| {name} | {seconds * 1e3:.0f} ({low * 1e3:.0f}, {high * 1e3:.0f}) | {tokens / seconds:,.0f} '
    f'| {tokens * args.steps / loading:,.0f} | {rate / 1e9:,.0f} | {product / 1e9:,.0f} '
    f'| {rate / product:.0%} |'
  )


def product_rate(size: int = 2048) -> float:
  """Operations per second of a float32 matrix product: the best of five."""
  x = jax.random.normal(jax.random.key(0), (size, size))
  product = jax.jit(jnp.matmul)
  product(x, x).block_until_ready()
  times = []
  for _ in range(5):
    begin = time.perf_counter()
    product(x, x).block_until_ready()
    times.append(time.perf_counter() - begin)
  return 2 * size**3 / min(times)


if __name__ == '__main__':
  main()
