"""SIGTERM in every phase of a run, and SIGKILL in a save: what is left, and the exit status.

Signals are sent when the process says that it has come to a phase.
"""

import signal

import linear_experiment as linear
import numpy as np
import pytest
from conftest import ROOT
from linear_experiment import exact
from processes import finish, start

from flaxlm.training import checkpoint
from flaxlm.training.writers import read_metrics

pytestmark = pytest.mark.full
STEPS = 40
FLAGS = {
  'data.train': 'text.txt',
  'model.num_layers': 1,
  'model.emb_dim': 32,
  'model.num_heads': 2,
  'model.max_length': 32,
  'tokenizer.name': 'characters',
  'global_batch_size': 4,
  'total_steps': STEPS,
  'evaluation.every_steps': 20,
  'evaluation.max_batches': 4,
  'checkpoint.every_steps': 8,
  'logging.every_steps': 1,
}


def signalled(process, text, signum=signal.SIGTERM):
  """(status, what was said) of a process that gets a signal when it says `text`."""
  said = []
  for line in process.stderr:
    said.append(line)
    if signum and text in line:
      process.send_signal(signum)
      signum = None
  assert signum is None, ''.join(said)
  said = ''.join(said)
  assert 'Traceback' not in said, said
  return process.wait(timeout=60), said


def train(folder, name):
  flags = [f'--config.{key}={value}' for key, value in FLAGS.items()]
  recipe = f'--config={ROOT}/configs/gpt2.py:mini'
  return start(ROOT / 'train.py', recipe, f'--workdir={name}', *flags, folder=folder)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('stopping')
  rng = np.random.default_rng(0)
  letters = np.array(list('abcdefgh '))
  texts = [''.join(rng.choice(letters, 60)) for _ in range(500)]
  (folder / 'text.txt').write_text('\n\n'.join(texts))
  return folder


def test_sigterm_in_every_phase(folder):
  """One run, stopped in one phase after the other, is the run that was left alone."""
  for text in (' data  ', ' init    parameters', ' compile '):
    status, said = signalled(train(folder, 'run'), text)
    assert status == 143
    # The first step may be done before the signal is seen.
    ends = 'SIGTERM: nothing to save', 'SIGTERM at step 0: nothing new', 'SIGTERM at step 1;'
    assert any(f'stopped by {end}' in said for end in ends[: 3 if 'compile' in text else 1]), said
  last = 0
  for text in ('checkpoint 8: held up', ' init    going on', ' compile ', ' eval  ', ' train  '):
    status, said = signalled(train(folder, 'run'), text)
    assert status == 143
    steps = checkpoint.steps_in(folder / 'run' / 'checkpoints')
    if f'stopped by SIGTERM at step {steps[-1]};' not in said:
      assert steps[-1] == last and 'nothing' in said, said
    checkpoint.read_meta(folder / 'run' / 'checkpoints', steps[-1])
    assert steps[-1] >= last
    last = steps[-1]
  # In the last save: it is completed, and so is the run.
  status, said = signalled(train(folder, 'run'), f' save    step {STEPS}')
  assert status == 0 and f'done at step {STEPS}' in said
  assert signalled(train(folder, 'whole'), '', None)[0] == 0
  assert exact(folder / 'run') == exact(folder / 'whole')
  assert len([x for x in read_metrics(folder / 'run') if x['split'] == 'train']) == STEPS


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A linear run that was left alone."""
  workdir = tmp_path_factory.mktemp('whole')
  finish(start(linear.__file__, workdir))
  return exact(workdir)


@pytest.mark.parametrize(
  ('trouble', 'shown', 'end'),
  [
    # A thread saves where an evaluation never answers.
    (
      'stuck evaluation',
      ' eval    validation at step 9',
      'stopped by SIGTERM at step 9; the same command goes on',
    ),
    # Without time to save the last checkpoint stands.
    ('stuck step', 'waiting', 'ended 2 s after SIGTERM'),
  ],
)
def test_a_main_thread_that_is_stuck_does_not_hold_up_the_end(tmp_path, whole, trouble, shown, end):
  process = start(linear.__file__, tmp_path / 'run', trouble)
  status, said = signalled(process, shown)
  assert status == 143 and end in said
  assert checkpoint.steps_in(tmp_path / 'run' / 'checkpoints') == [7, 9]
  finish(start(linear.__file__, tmp_path / 'run'))
  assert exact(tmp_path / 'run') == whole


def test_a_save_cut_short_by_sigkill_is_never_the_latest(tmp_path, whole):
  finish(start(linear.__file__, tmp_path / 'run', 'killed save'), -signal.SIGKILL)
  names = {path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()}
  assert '14' not in names and any(name.startswith('14.') for name in names)
  _, said = finish(start(linear.__file__, tmp_path / 'run'))
  assert 'going on from step 9' in said
  assert exact(tmp_path / 'run') == whole
