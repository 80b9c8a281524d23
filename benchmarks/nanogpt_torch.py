"""nanoGPT's recipe for CPUs, step by step beside the same model in plain PyTorch.

  python benchmarks/nanogpt_torch.py --data=shakespeare.txt [--pairs=5] [--steps=200]

A step is what nanoGPT's own timer holds: a batch of 12 random windows of 64 characters, forward and
backward pass, clipping, AdamW, and the loss read back. PyTorch runs as nanoGPT does there: eager,
in float32, with its fused attention, on as many threads as there are cores, and as
`torch.optim.AdamW(fused=True)` would, too. Each arm is a process of its own, in turn with the
others; a pair's number is the median of its steps, and the ratio's interval is that of a t-test
over pairs. Losses are means of the last 20 steps; the arms start from other draws of the weights.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from flaxlm import host

ROOT = pathlib.Path(__file__).parent.parent
WARMUP = 5  # Steps that are not timed: the first compiles.
Arm = Callable[[argparse.Namespace], list[tuple[float, float]]]


def flaxlm(args: argparse.Namespace) -> list[tuple[float, float]]:
  """(seconds, loss) of each step, its batch made within it; train.py makes it ahead."""
  from flaxlm.config import recipe
  from flaxlm.training.experiment import build

  with tempfile.TemporaryDirectory() as workdir:
    overrides = [('data.train', args.data)]
    experiment = build(recipe.load(str(ROOT / 'configs/nanogpt_char.py'), overrides), workdir)
  state, found = experiment.init_state(), []
  for step in range(args.steps + WARMUP):
    begin = time.perf_counter()
    batch = experiment.put(experiment.train_data.batch(step))
    state, metrics = experiment.train_step(state, batch)
    loss = metrics['loss'].value()
    found.append((time.perf_counter() - begin, loss))
  return found[WARMUP:]


def pytorch(args: argparse.Namespace, fused: bool = False) -> list[tuple[float, float]]:
  """The same of PyTorch."""
  import torch
  from torch import nn
  from torch.nn import functional

  rows, length, layers, heads, width = 12, 64, 4, 4, 128
  text = pathlib.Path(args.data).expanduser().read_text()
  ids = {character: i for i, character in enumerate(sorted(set(text)))}
  data = torch.tensor([ids[character] for character in text[: len(text) * 9 // 10]])

  class Block(nn.Module):
    def __init__(self) -> None:
      super().__init__()
      self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
      sizes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
      self.maps = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
      qkv, out, up, down = self.maps
      split = qkv(self.norms[0](x)).view(*x.shape[:2], 3, heads, -1)
      q, k, v = split.permute(2, 0, 3, 1, 4)
      mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
      x = x + out(mixed.transpose(1, 2).reshape(x.shape))
      return x + down(functional.gelu(up(self.norms[1](x))))

  class Decoder(nn.Module):
    def __init__(self) -> None:
      super().__init__()
      self.tokens, self.places = nn.Embedding(len(ids), width), nn.Embedding(length, width)
      self.blocks = nn.Sequential(*(Block() for _ in range(layers)))
      self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
      x = self.blocks(self.tokens(inputs) + self.places.weight)
      logits = self.norm(x) @ self.tokens.weight.T
      return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

  torch.manual_seed(0)
  model = Decoder()
  matrices = [p for p in model.parameters() if p.dim() > 1]
  vectors = [p for p in model.parameters() if p.dim() < 2]
  for parameter in matrices:
    nn.init.normal_(parameter, std=0.05)  # as configs/nanogpt_char.py draws them
  groups = [{'params': matrices, 'weight_decay': 0.1}, {'params': vectors, 'weight_decay': 0.0}]
  optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=fused)
  found = []
  for step in range(args.steps + WARMUP):
    for group in optimizer.param_groups:
      group['lr'] = 1e-3 * min(step / 100, 1)
    begin = time.perf_counter()
    starts = torch.randint(len(data) - length, (rows,))
    windows = torch.stack([data[i : i + length + 1] for i in starts])
    mean = model(windows[:, :-1], windows[:, 1:])
    mean.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss = mean.item()
    found.append((time.perf_counter() - begin, loss))
  return found[WARMUP:]


ARMS: dict[str, Arm] = {
  'flaxlm': flaxlm,
  'PyTorch': pytorch,
  'PyTorch, fused AdamW': lambda args: pytorch(args, fused=True),
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--data', required=True, help='a text, one document')
  parser.add_argument('--pairs', type=int, default=5)
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--arm', choices=ARMS, help='this one only: one JSON line')
  args = parser.parse_args()
  host.prepare()  # as the commands do
  if args.arm:
    steps = ARMS[args.arm](args)
    seconds, losses = zip(*steps, strict=True)
    print(json.dumps({'seconds': float(np.median(seconds)), 'loss': float(np.mean(losses[-20:]))}))
    return
  found = {name: [] for name in ARMS}
  for number in range(args.pairs):
    for name in ARMS:
      command = [sys.executable, __file__, f'--data={args.data}', f'--steps={args.steps}']
      command.append(f'--arm={name}')
      done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
      found[name].append(json.loads(done.stdout.splitlines()[-1]))
      print(f'{number + 1}/{args.pairs} {name}: {done.stdout.strip()}', file=sys.stderr)
  print_table(found)


def print_table(found: dict[str, list[dict[str, float]]]) -> None:
  """One line an arm; the ratio is flaxlm's time over the arm's, with its 95 % interval."""
  from scipy import stats

  times = {name: np.array([run['seconds'] for run in runs]) for name, runs in found.items()}
  print('| arm | ms a step: median (least, most) | flaxlm / arm | loss of the last 20 steps |')
  print('|---|---|---|---|')
  for name, seconds in times.items():
    ms, ratio = 1e3 * seconds, ''
    if name != 'flaxlm':
      logs = np.log(times['flaxlm'] / seconds)
      low, high = np.exp(stats.ttest_1samp(logs, 0).confidence_interval(0.95))
      ratio = f'{np.exp(logs.mean()):.2f} ({low:.2f}, {high:.2f})'
    loss = np.mean([run['loss'] for run in found[name]])
    print(
      f'| {name} | {np.median(ms):.1f} ({ms.min():.1f}, {ms.max():.1f}) | {ratio} | {loss:.3f} |'
    )


if __name__ == '__main__':
  main()
