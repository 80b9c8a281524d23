"""Speed of decoding: with and without a cache, and beside transformers' generate.

  python benchmarks/decoding.py --new-tokens=16 --parts=cached,transformers      # a first look
  python benchmarks/decoding.py

The decoder of configs/gpt2.py:124m (124M parameters, float32) continues 8 random prompts of 32
tokens greedily, by 256 new tokens. The weights are those of a randomly initialised GPT2LMHeadModel,
imported, so that both sides compute the same; the share of tokens they agree on is printed.

Parts: `cached` is flaxlm's generate; `uncached` reads the whole row again for each new token (of
which every --uncached-every-th is timed, and stands for those up to the next); `transformers` is
its generate with its cache, on as many threads as there are cores. Each is run once before it is
timed, which compiles it, and then --repeats times in turn with the others; printed are the median
seconds, their range, and ratios of the medians.
"""

import argparse
import functools
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from flaxlm import host
from flaxlm.decoding.cache import Reader, bucket
from flaxlm.decoding.generate import generate
from flaxlm.decoding.sampling import Sampling
from flaxlm.interop import convert
from flaxlm.models import decoder
from flaxlm.models.model import Model
from flaxlm.models.scores import logits
from flaxlm.objectives import next_token
from flaxlm.objectives.base import Prompt
from flaxlm.paths import leaf_paths, nested

PARTS = ('cached', 'uncached', 'transformers')


def main() -> None:
  args = _parse()
  host.prepare()  # as the commands do
  torch_model, model, params = models(args)
  prompts = np.random.default_rng(0).integers(1, 50000, (args.batch, args.prompt)).astype(np.int32)
  parts = {
    'cached': functools.partial(cached, Reader.of(model, params), prompts, args),
    'uncached': functools.partial(uncached, model, params, prompts, args),
    'transformers': functools.partial(theirs, torch_model, prompts, args),
  }
  tokens, times = {}, {name: [] for name in args.parts}
  for name in args.parts:
    tokens[name] = parts[name]()[1]
    print(f'{name}: ready', flush=True)
  for _ in range(args.repeats):
    for name in args.parts:
      times[name].append(parts[name]()[0])
      print(f'{name}: {times[name][-1]:.2f} s', flush=True)
  report(args, times, tokens)


def report(args: argparse.Namespace, times: dict[str, list[float]], tokens: dict[str, Any]) -> None:
  print(f'\n{os.cpu_count()} cores, {jax.devices()[0].device_kind}, jax {jax.__version__}')
  print(f'batch {args.batch}, prompts of {args.prompt}, {args.new_tokens} new tokens')
  print('| part | seconds (range) | tokens/s |\n|---|---|---|')
  median = {name: float(np.median(seconds)) for name, seconds in times.items()}
  for name, seconds in times.items():
    rate = args.batch * args.new_tokens / median[name]
    print(f'| {name} | {median[name]:.2f} ({min(seconds):.2f}, {max(seconds):.2f}) | {rate:.1f} |')
  for other in ('uncached', 'transformers'):
    if 'cached' in median and other in median:
      agree = np.mean(tokens['cached'] == tokens[other]) if other == 'transformers' else None
      print(
        f'cached is {median[other] / median["cached"]:.2f} times as fast as {other}'
        + ('' if agree is None else f'; {agree:.1%} of the tokens are the same')
      )


def models(args: argparse.Namespace) -> tuple[Any, Model, Any]:
  """A random GPT-2 of transformers, and the flaxlm model with its weights."""
  import torch
  import transformers

  torch.set_num_threads(os.cpu_count() or 1)
  torch.manual_seed(0)
  config = transformers.GPT2Config(n_layer=args.layers)
  torch_model = transformers.GPT2LMHeadModel(config).eval()
  with tempfile.TemporaryDirectory() as folder:
    torch_model.save_pretrained(folder)
    public, source = convert.open_folder(pathlib.Path(folder))
    model = Model(decoder.Trunk(public.model), next_token.Head(public.model))
    one = np.ones((1, 1), np.int32)
    batch = {'inputs': one, 'positions': 0 * one, 'segment_ids': one}
    shapes = jax.eval_shape(lambda key: model.init(key, batch)['params'], jax.random.key(0))
    loaded = convert.load(public, source, leaf_paths(nn.unbox(shapes)))
  return torch_model, model, jax.tree.map(jnp.asarray, nested(loaded.leaves))


def cached(reader: Reader, prompts: np.ndarray, args: Any) -> tuple[float, np.ndarray]:
  """(seconds, new tokens [B, n])"""
  begin = time.perf_counter()
  found = generate(reader, [Prompt(row) for row in prompts], Sampling(args.new_tokens, 0.0))
  return time.perf_counter() - begin, np.stack([row.tokens for row in found])


@functools.partial(jax.jit, static_argnums=0)
def _next(model, params, inputs, last) -> jax.Array:
  positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
  segments = (positions <= last).astype(jnp.int32)
  batch = {'inputs': inputs, 'positions': positions, 'segment_ids': segments}
  output = model.apply({'params': params}, batch)[0]
  return logits(output.replace(hidden=output.hidden[:, last])).argmax(-1)


def uncached(model, params, prompts: np.ndarray, args: Any) -> tuple[float, None]:
  """(seconds, None); rows are padded to the lengths that the cache has."""
  seconds, row = 0.0, np.zeros((args.batch, args.prompt + args.new_tokens), np.int32)
  row[:, : args.prompt] = prompts
  for count in range(0, args.new_tokens, args.uncached_every):
    length = args.prompt + count
    width = min(bucket(length), row.shape[1])
    begin = time.perf_counter()
    _next(model, params, row[:, :width], length - 1).block_until_ready()
    stands_for = min(args.uncached_every, args.new_tokens - count)
    seconds += (time.perf_counter() - begin) * stands_for
  return seconds, None


def theirs(torch_model: Any, prompts: np.ndarray, args: Any) -> tuple[float, np.ndarray]:
  """(seconds, new tokens [B, n])"""
  import torch

  inputs = torch.tensor(prompts, dtype=torch.long)
  begin = time.perf_counter()
  with torch.inference_mode():
    found = torch_model.generate(
      inputs, attention_mask=torch.ones_like(inputs), do_sample=False, eos_token_id=None,
      max_new_tokens=args.new_tokens, pad_token_id=0,
    )  # fmt: skip
  return time.perf_counter() - begin, found[:, inputs.shape[1] :].numpy()


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--parts', default=','.join(PARTS))
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--prompt', type=int, default=32)
  parser.add_argument('--new-tokens', type=int, default=256)
  parser.add_argument('--layers', type=int, default=12)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--uncached-every', type=int, default=16)
  args = parser.parse_args()
  args.parts = args.parts.split(',')
  if unknown := set(args.parts) - set(PARTS):
    parser.error(f'--parts: {unknown.pop()!r} is none of {", ".join(PARTS)}')
  return args


if __name__ == '__main__':
  main()
