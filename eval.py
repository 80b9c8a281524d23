"""Evaluates a run on its validation (and test) text or rows; prints one JSON object.

  python eval.py --workdir=runs/quickstart
  python eval.py --workdir=runs/quickstart --checkpoint=best --config.data.validation=other.txt

The object is also written to WORKDIR/eval/. Everything it needs is in the workdir.
"""

import json
import sys
from collections.abc import Sequence

from flaxlm import commandline, distributed, host, terminal


def main(argv: Sequence[str]) -> None:
  parser = commandline.Parser(__doc__, overrides=True)
  commandline.add_run_flags(
    parser,
    checkpoint='auto',
    note='; auto (the default): best where there is a test set, else latest',
  )
  distributed.add_flags(parser)
  args = parser.parse(argv)
  processes = distributed.settings(args)
  terminal.phase('init', f'checkpoint {args.checkpoint} of {args.workdir}')
  distributed.start(processes)
  # Imported after the first line is out: this takes seconds.
  from flaxlm.evaluation import evaluator

  result = evaluator.evaluate_workdir(args.workdir, args.checkpoint, args.overrides)
  terminal.close()
  if distributed.is_first():
    print(json.dumps(result, indent=2), flush=True)


if __name__ == '__main__':
  host.prepare()
  sys.exit(commandline.run(main, sys.argv[1:]))
