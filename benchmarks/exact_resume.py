"""Is a run that was killed ten times the run that was left alone? Bit for bit?

  python benchmarks/exact_resume.py --workdir=runs/exact --config.data.train=shakespeare.txt

Trains `configs/nanogpt_char.py` (with dropout, a few hundred steps) once undisturbed. Then the same
command is killed with SIGKILL at a random moment, ten times, and repeated until it ends by itself.
The moments lie in every part of a life, in random order: start, compilation, training, evaluation,
save; of the later three, in the first to third there is. Where in the part is drawn uniformly over
about what the undisturbed run spent there.

Compared are all lines of metrics.jsonl (everything but tokens per second) and every leaf of the
last checkpoint: parameters, optimizer state and step. Exit status 1 if anything differs. Further
`--config.a.b=value` go to both runs; --seed repeats the moments, as far as a clock can.
"""

import argparse
import dataclasses
import pathlib
import random
import shutil
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

from flaxlm.config import tree
from flaxlm.paths import leaf_paths
from flaxlm.training import checkpoint
from flaxlm.training.experiment import build
from flaxlm.training.writers import read_metrics

ROOT = pathlib.Path(__file__).parent.parent
PARTS = ('start', 'compile', 'train', 'eval', 'save')
OVERRIDES = (
  '--config.model.dropout_rate=0.1',
  '--config.evaluation.every_steps=25',
  '--config.evaluation.max_batches=3',
  '--config.checkpoint.every_steps=25',
  '--config.logging.every_steps=1',
)


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', type=pathlib.Path, required=True, help='emptied first')
  parser.add_argument('--config', default='configs/nanogpt_char.py')
  parser.add_argument('--kills', type=int, default=10)
  parser.add_argument('--steps', type=int, default=400)
  parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(1 << 32))
  args, overrides = parser.parse_known_args()
  command = [sys.executable, 'train.py', f'--config={args.config}', *OVERRIDES]
  command += [f'--config.total_steps={args.steps}', *overrides]
  print(' '.join(command[1:]), f'\nseed {args.seed}', flush=True)
  whole, killed = args.workdir / 'whole', args.workdir / 'killed'
  for workdir in (whole, killed):
    shutil.rmtree(workdir, ignore_errors=True)

  life = Life([*command, f'--workdir={whole}'], whole)
  life.wait()
  print(f'left alone: {args.steps} steps in {life.now():.0f} s', flush=True)
  rng = random.Random(args.seed)
  parts = [PARTS[i % len(PARTS)] for i in range(args.kills)]
  rng.shuffle(parts)
  print('\n| kill | in | s into it | s after the start | last line | checkpoint | torn save |')
  print('|---|---|---|---|---|---|---|')
  for number, part in enumerate(parts, start=1):
    times = rng.randint(1, 3) if part in ('train', 'eval', 'save') else 1
    delay = rng.random() * life.durations[part]
    row = kill([*command, f'--workdir={killed}'], killed, part, times, delay)
    print(f'| {number} {row}', flush=True)
  last = Life([*command, f'--workdir={killed}'], killed)
  last.wait()
  print(f'\nkilled {args.kills} times, then left to end: {last.now():.0f} s', flush=True)
  return compare(whole, killed, args.steps)


class Life:
  """A run from start to end, and when each of its parts began."""

  def __init__(self, command: list[str], workdir: pathlib.Path):
    self.workdir = workdir
    self.lines: list[str] = []
    self._begin = time.monotonic()
    self._begins: dict[str, list[float]] = {'start': [0.0]}
    self._changed = threading.Condition()
    self._process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    threading.Thread(target=self._read, daemon=True).start()
    threading.Thread(target=self._watch, daemon=True).start()

  def now(self) -> float:
    return time.monotonic() - self._begin

  def _read(self) -> None:
    """Lines of stderr begin with the time and the phase."""
    phase = ''
    for line in self._process.stderr:
      self.lines.append(line.rstrip())
      words = line.split()
      if len(words) > 1 and words[1] in PARTS and words[1] != phase:
        phase = words[1]
        # The save that this phase is named after is the one at the end.
        if phase != 'save':
          self._note(phase)
    self._note('end')

  def _watch(self) -> None:
    """A save has no line of its own: it is a folder that has not got its name yet."""
    saving = bool(torn(self.workdir))
    while self._process.poll() is None:
      before, saving = saving, bool(torn(self.workdir))
      if saving and not before:
        self._note('save')
      time.sleep(0.001)

  def _note(self, part: str) -> None:
    with self._changed:
      self._begins.setdefault(part, []).append(self.now())
      self._changed.notify_all()

  @property
  def durations(self) -> dict[str, float]:
    """Seconds: start and compilation, some steps, an evaluation, a save."""
    first = {part: times[0] for part, times in self._begins.items()}
    return {
      'start': first['compile'],
      'compile': first['train'] - first['compile'],
      'train': first['eval'] - first['train'],
      'eval': max(first['save'] - first['eval'], 0.02),
      'save': 0.1,
    }

  def reach(self, part: str, times: int = 1) -> None:
    """Returns when the part begins for the so manieth time; the run may not end before."""
    reached = lambda: len(self._begins.get(part, ())) >= times
    with self._changed:
      self._changed.wait_for(lambda: reached() or 'end' in self._begins)
    if not reached():
      self.fail(f'ended before {part!r} began {times} times: give it more --steps')

  def wait(self) -> None:
    if self._process.wait():
      self.fail(f'ended with status {self._process.returncode}')
    self.reach('end')

  def kill(self) -> None:
    if self._process.poll() is not None:
      self.fail('ended before it was to be killed: give it more --steps')
    self._process.kill()
    self._process.wait()

  def fail(self, what: str) -> None:
    raise RuntimeError('\n'.join(['the run ' + what, *self.lines[-20:]]))


def kill(command: list[str], workdir: pathlib.Path, part: str, times: int, delay: float) -> str:
  """Runs and kills `delay` seconds into the so manieth part of its kind; a row of the table."""
  life = Life(command, workdir)
  life.reach(part, times)
  time.sleep(delay)
  life.kill()
  after = life.now()
  steps = [line['step'] for line in read_metrics(workdir)] if workdir.exists() else []
  saved = checkpoint.steps_in(workdir / 'checkpoints')
  left = ', '.join(path.name.partition('.')[0] for path in torn(workdir))
  number = f' {times}' if part in ('train', 'eval', 'save') else ''
  return (
    f'| {part}{number} | {delay:.2f} | {after:.1f} | {steps[-1] if steps else "none"} '
    f'| {saved[-1] if saved else "none"} | {left} |'
  )


def torn(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Folders of saves that are not complete."""
  return list((workdir / 'checkpoints').glob('*.orbax-checkpoint-tmp*'))


def compare(whole: pathlib.Path, killed: pathlib.Path, step: int) -> int:
  """Prints what is equal and what differs; the exit status."""
  status = 0
  lines = [[line | {'tokens_per_second': 0} for line in read_metrics(w)] for w in (whole, killed)]
  different = [(a, b) for a, b in zip(*lines, strict=False) if a != b]
  if different or len(lines[0]) != len(lines[1]):
    status = 1
    print(f'metrics.jsonl: {len(lines[0])} and {len(lines[1])} lines, {len(different)} differ')
    for a, b in different[:5]:
      print(f'  {a}\n  {b}')
  else:
    losses = sum('loss' in line for line in lines[0])
    print(f'metrics.jsonl: {len(lines[0])} lines, {losses} losses: all equal')
  states = [leaf_paths(restored(workdir, step)) for workdir in (whole, killed)]
  same = {path: bits(leaf) == bits(states[1][path]) for path, leaf in states[0].items()}
  size = sum(leaf.size for leaf in states[0].values())
  if not all(same.values()) or states[0].keys() != states[1].keys():
    status = 1
    print('checkpoint: differs in', ', '.join(path for path, equal in same.items() if not equal))
  else:
    print(f'checkpoint {step}: {len(same)} leaves, {size} numbers: the same bits')
  print('EQUAL' if status == 0 else 'DIFFERENT')
  return status


def restored(workdir: pathlib.Path, step: int) -> object:
  """The whole state of a checkpoint, its digests checked."""
  directory = workdir / 'checkpoints'
  meta = checkpoint.read_meta(directory, step)
  config = dataclasses.replace(tree.from_dict(meta['config']), mesh=(1, 1, 1))
  experiment = build(config, workdir, with_data=False, devices=jax.devices()[:1])
  return checkpoint.restore_tree(directory, step, experiment.abstract_state, meta)


def bits(leaf: jax.Array) -> tuple:
  array = np.asarray(leaf)
  return array.dtype, array.shape, array.tobytes()


if __name__ == '__main__':
  sys.exit(main())
