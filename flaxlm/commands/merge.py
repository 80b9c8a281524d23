"""Writes the weights of a run as a run of its own: LoRA merged, averages taken.

  python -m flaxlm merge --workdir=runs/lora --to=runs/merged
  python -m flaxlm merge --workdir=runs/translation --to=runs/averaged --checkpoint=average:5

What is written is at step 0: start from it with --config.init_from, or evaluate, decode or export
it. With optimizer.ema_decay it is the moving average, unless evaluation.ema was set to false.
"""

import dataclasses
from collections.abc import Sequence
from os.path import expanduser
from typing import Any

from etils import epath

from flaxlm import commandline, terminal
from flaxlm.commands import _folder


def main(argv: Sequence[str]) -> None:
  parser = commandline.Parser(__doc__)
  commandline.add_run_flags(parser)
  parser.add_argument('--to', required=True, type=expanduser, help='folder to write; new')
  args = parser.parse(argv)
  target = _folder.new('--to', args.to)
  terminal.phase('init', f'checkpoint {args.checkpoint} of {args.workdir}')
  from flaxlm.training.experiment import open_model

  experiment, params, step = open_model(args.workdir, args.checkpoint)
  config = _plain(experiment.config, target)
  with _folder.staged(target) as temporary:
    _folder.write_run(temporary, config, experiment.tokenizer, params)
    source = epath.Path(args.workdir) / 'hf'  # what an export needs of an import
    if source.exists():
      (temporary / 'hf').mkdir()
      for file in source.iterdir():
        file.copy(temporary / 'hf' / file.name)
  terminal.close()
  print(f'checkpoint {step} of {args.workdir} -> {target}')


def _plain(config: Any, target: epath.Path) -> Any:
  """The config of a run whose weights are these, without what they were made of."""
  from flaxlm.config.tuning import TuningConfig

  return dataclasses.replace(
    config,
    tuning=TuningConfig(),
    optimizer=dataclasses.replace(config.optimizer, ema_decay=0.0),
    evaluation=dataclasses.replace(config.evaluation, ema=True),
    tokenizer=dataclasses.replace(config.tokenizer, path=str(target / 'tokenizer'), add=()),
  )
