"""Pretrains or fine-tunes a model.

  python train.py --config=configs/quickstart.py --workdir=runs/quickstart
  python train.py --config=configs/gpt2.py:mini --workdir=runs/gpt --config.data.train=text.txt

A workdir that holds a checkpoint is resumed. The workdir is left with config.json, metrics.jsonl,
checkpoints/ and tokenizer/. On several hosts it is the same command on each (docs/pods.md).
"""

import sys
from collections.abc import Sequence
from os.path import expanduser

from flaxlm import commandline, distributed, host, terminal


def main(argv: Sequence[str]) -> None:
  parser = commandline.Parser(__doc__, overrides=True)
  parser.add_argument('--config', required=True, help='recipe: configs/NAME.py[:variant]')
  parser.add_argument(
    '--workdir', required=True, type=expanduser, help='folder of the run; made if absent'
  )
  distributed.add_flags(parser)
  args = parser.parse(argv)
  processes = distributed.settings(args)
  terminal.phase('init', f'{args.config} in {args.workdir}')
  # Imported after the first line is out: these take seconds.
  from flaxlm.config import recipe

  config = recipe.load(args.config, args.overrides, args.workdir)
  distributed.start(processes)
  from flaxlm.training import loop

  loop.train(config, args.workdir, args.overrides)


if __name__ == '__main__':
  host.prepare()
  sys.exit(commandline.run(main, sys.argv[1:]))
