"""Continue prompts with a decoder, or answer them with an encoder-decoder.

  python -m flaxlm generate --workdir=runs/gpt --prompt='The film' --temperature=0.8 --top-k=40
  python -m flaxlm generate --workdir=runs/t5 --prompt='The film <extra_id_0> from start to end.'
  python -m flaxlm generate --workdir=runs/translate --prompt='A dog runs.' --num-beams=5

Without a prompt the text starts from nothing. `--json` prints one object a line.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from flaxlm import commandline, terminal
from flaxlm.commands import _writing
from flaxlm.errors import UserError


def main(argv: Sequence[str]) -> None:
  args, options = _parse(argv)
  terminal.phase('init', f'checkpoint {args.checkpoint} of {args.workdir}')
  from flaxlm.training.experiment import open_model

  experiment, params, _ = open_model(args.workdir, args.checkpoint)
  writer = _writing.writer(experiment, params, args.workdir)
  texts = [text for text in args.prompt or [''] for _ in range(args.num_samples)]
  prompts = [writer.prompt(text, '--prompt') for text in texts]
  how = _writing.how(options, options.max_new_tokens)
  terminal.phase('decode', f'{len(prompts)} texts')
  for start in range(0, len(prompts), options.batch_size):
    rows = range(len(prompts))[start : start + options.batch_size]
    draws = [(options.seed, row) for row in rows]
    found = writer.write([prompts[row] for row in rows], how, draws, options.stop)
    terminal.close()
    for row, outputs in zip(rows, found, strict=True):
      for output in outputs[: options.num_best]:
        _print(texts[row], prompts[row], output, args.json)


def _print(text: str, prompt: Any, output: Any, as_json: bool) -> None:
  if as_json:
    print(json.dumps({'prompt': text} | _writing.record(output), ensure_ascii=False), flush=True)
  elif prompt.encoder_inputs is None:
    print(text + output.text, flush=True)
  else:
    print(f'{text}\n-> {output.text}', flush=True)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, _writing.Options]:
  parser = commandline.Parser(__doc__)
  commandline.add_run_flags(parser)
  parser.add_argument('--prompt', action='append', help='may be given several times')
  parser.add_argument('--num-samples', type=int, default=1, help='texts for each prompt')
  _writing.add_flags(parser, temperature=1.0, max_new_tokens=100)
  parser.add_argument('--json', action='store_true', help='one JSON object a text')
  args = parser.parse(argv)
  if args.num_samples < 1:
    raise UserError('--num-samples: must be at least 1')
  options = _writing.Options.of(args)
  if args.num_samples > 1 and options.num_beams:
    raise UserError('--num-samples: a beam search finds the same texts each time; see --num-best')
  if args.num_samples > 1 and options.temperature == 0:
    raise UserError('--num-samples: at temperature 0 all texts are the same; set --temperature')
  return args, options
