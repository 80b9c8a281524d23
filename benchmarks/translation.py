"""Translation from scratch: flaxlm beside the same model in PyTorch, on the same batches.

  python benchmarks/translation.py --data=DATA --workdir=runs/multi30k

Multi30k, English to German: configs/translate.py:transformer in the size below, 2.4 million
parameters. Both arms begin at the same parameters, take the same batches in the same order, and
have the same optimizer, schedule and dropout rates; the means of the newest checkpoints (AVERAGED)
of each are evaluated by flaxlm's beam search (BEAMS), by sacreBLEU on detokenised text. The model
of PyTorch is made of its own layers (translation_torch.py); before training, the losses of both on
a batch are printed, and must agree.

The script goes on where it was stopped, and with --arm two of them share a machine; the arm of
PyTorch begins when that of flaxlm has its tokenizer. DATA holds multi30k/ with the public files.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import translation_torch

from flaxlm import host
from flaxlm.config import recipe
from flaxlm.evaluation import evaluator
from flaxlm.training import experiment, loop

ROOT = pathlib.Path(__file__).parent.parent
ARMS = ('flaxlm', 'torch')
BEAMS, LENGTH_PENALTY, AVERAGED = 5, 1.0, 5
FIELDS = {
  'model.num_layers': 4,
  'model.emb_dim': 128,
  'model.num_heads': 4,
  'model.mlp_dim': 256,
  'model.dropout_rate': 0.3,
  'model.mlp_dropout_rate': 0.3,
  'model.embedding_dropout_rate': 0.3,
  'model.attention_dropout_rate': 0.3,
  'model.init_std': 0.088,  # D^-0.5, as the recipe has it for its width
  'tokenizer.vocab_size': 8192,
  'data.max_length': 64,
  'data.max_target_length': 64,
  'global_batch_size': 64,
  'total_steps': 8000,
  'optimizer.schedule': 'rsqrt',
  'optimizer.learning_rate': 5e-3,
  'optimizer.warmup_steps': 1000,
  'evaluation.every_steps': 1000,
  'evaluation.max_written': 100,
  'checkpoint.every_steps': 250,
  'checkpoint.keep_last': AVERAGED,
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--arm', choices=ARMS, help='this one only')
  parser.add_argument('--set', nargs='*', default=[], help='KEY=VALUE of the config, in both arms')
  args = parser.parse_args()
  host.prepare()  # as the commands do
  changes = FIELDS | files(args.data) | dict(pair.split('=', 1) for pair in args.set)
  overrides = [(key, str(value)) for key, value in changes.items()]
  config = recipe.load(str(ROOT / 'configs' / 'translate.py:transformer'), overrides)
  tune = {'flaxlm': tune_flaxlm, 'torch': tune_torch}
  for arm in [args.arm] if args.arm else ARMS:
    done = args.workdir / f'{arm}.json'
    if not done.exists():
      done.write_text(json.dumps(tune[arm](args.workdir, config, overrides)))
    found = json.loads(done.read_text())
    print(f'| {arm} | ' + ' | '.join(f'{found[key]:.2f}' for key in ('bleu', 'chrf')) + ' |')


def files(data: pathlib.Path) -> dict[str, str]:
  """Fields that name the sets."""
  folder = data / 'multi30k'
  names = {'train': 'train', 'validation': 'val', 'test': 'test_2016_flickr'}
  return {f'data.{k}': f'{folder / v}.en.gz+{folder / v}.de.gz' for k, v in names.items()}


def tune_flaxlm(workdir: pathlib.Path, config, overrides: list[tuple[str, str]]) -> dict:
  run = str(workdir / 'flaxlm')
  loop.train(config, run, overrides)
  beams = [('evaluation.num_beams', str(BEAMS)), ('evaluation.length_penalty', str(LENGTH_PENALTY))]
  return evaluator.evaluate_workdir(run, f'average:{AVERAGED}', beams)['test']


def tune_torch(workdir: pathlib.Path, config, _) -> dict:
  tokenizer = workdir / 'flaxlm' / 'tokenizer'
  config = dataclasses.replace(
    config,
    tokenizer=dataclasses.replace(config.tokenizer, path=str(tokenizer)),
    evaluation=dataclasses.replace(
      config.evaluation, num_beams=BEAMS, length_penalty=LENGTH_PENALTY
    ),
  )
  run = workdir / 'torch'
  params = translation_torch.train(experiment.build(config, run), run, AVERAGED)
  evaluated = experiment.build(config, run, training=False)
  return evaluator.evaluate(evaluated, params, 'test').metrics


if __name__ == '__main__':
  main()
