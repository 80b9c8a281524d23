"""Lists the models of configs/ with their parameters, FLOPs and memory.

  python -m flaxlm presets
  python -m flaxlm presets --json

NAME.py:VARIANT is what --config=configs/NAME.py:VARIANT trains. `parameters` are those of the model
with the head of its objective, `trunk_parameters` those without, but with BERT's pooler, which is
part of the published trunk (RoBERTa was trained without one); rows that pad a vocabulary table
count as none. `flops_per_token` are those of a training step, forward and backward, at the recipe's
row length. `parameter_bytes` and `optimizer_bytes` (the state of the recipe's optimizer) are what a
run holds before activations, over all devices. Nothing is trained or read: shapes are worked out.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

import flaxlm
from flaxlm import commandline, terminal

CONFIGS = epath.Path(flaxlm.__file__).parent.parent / 'configs'


@dataclasses.dataclass(frozen=True)
class Preset:
  """Numbers of one variant of a recipe; see the command's help."""

  name: str
  trunk_parameters: int
  parameters: int
  flops_per_token: float
  parameter_bytes: int
  optimizer_bytes: int


def main(argv: Sequence[str]) -> None:
  parser = commandline.Parser(__doc__)
  parser.add_argument('--json', action='store_true', help='a JSON list of objects')
  args = parser.parse(argv)
  if args.json:
    print(json.dumps([dataclasses.asdict(measure(name)) for name in names()], indent=2))
    return
  row = '{:24} {:>8} {:>11} {:>12} {:>9} {:>11}'.format
  print(row('recipe', 'trunk', 'with head', 'FLOPs/token', 'GiB', '+ optimizer'), flush=True)
  for name in names():
    p = measure(name)
    sizes = [terminal.count(n) for n in (p.trunk_parameters, p.parameters, p.flops_per_token)]
    memory = [f'{n / 2**30:,.2f}' for n in (p.parameter_bytes, p.optimizer_bytes)]
    print(row(name, *sizes, *memory), flush=True)


def names() -> Iterator[str]:
  """'NAME.py:VARIANT' of every recipe that offers sizes of a model."""
  from flaxlm.config import recipe

  for file in sorted(CONFIGS.glob('*.py')):
    found = recipe.Recipe(str(file))
    if not found.imports_recipes:
      yield from (f'{file.name}:{variant}' for variant in found.variants)


def measure(name: str) -> Preset:
  """The preset of a name that `names` gave."""
  import flax.linen as nn
  import jax

  from flaxlm.config import recipe, tree
  from flaxlm.plan import sizes
  from flaxlm.training.footprint import total_bytes
  from flaxlm.training.optimizer import make_optimizer

  path, variant = recipe.split(str(CONFIGS / name))
  config = tree.from_config_dict(recipe.Recipe(path).config(variant))
  # How layers are run changes no shape, and one traced layer is traced faster than many.
  model = {'vocab_size': config.tokenizer.vocab_size, 'scan_layers': True}
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
  params, batch = _shapes(config)
  moments = jax.eval_shape(make_optimizer(config.optimizer, 1)[0].init, nn.unbox(params))
  length = sum(shape[1] for key, shape in batch.items() if key.endswith('segment_ids'))
  head = params.get('head', {})
  trunk, pooler = params['trunk'], head.get('nsp', {}).get('pooler', {})
  return Preset(
    name=name,
    trunk_parameters=sizes.count((trunk, pooler), config.model),
    parameters=sizes.count((trunk, head), config.model),
    flops_per_token=sizes.step_flops(config.model, params, batch) / length,
    parameter_bytes=total_bytes(params),
    optimizer_bytes=total_bytes(moments),
  )


def _shapes(config: Any) -> tuple[Any, dict[str, tuple[int, ...]]]:
  """Shapes of the parameters, boxed with their logical axes, and of a batch of one row."""
  import jax

  from flaxlm.data import packing
  from flaxlm.models.model import make_model
  from flaxlm.plan import abstract
  from flaxlm.training.checks import objective_class

  objective = objective_class(config)(config, abstract.tokenizer(config.tokenizer))
  batch = packing.pack_rows([[]], objective.streams)
  model = make_model(config.model, objective.head(config.model))
  params = jax.eval_shape(model.init, jax.random.key(0), batch)['params']
  return params, {key: value.shape for key, value in batch.items()}
