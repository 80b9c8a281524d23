"""Batches of worker processes: the same for any number, in order; no process outlives its use."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from worker_cases import Closed, Reading, make, with_workers

from flaxlm.errors import UserError

TESTS = pathlib.Path(__file__).parents[1]


def is_alive(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'
  except FileNotFoundError:
    return False


def ends_within(seconds, pids):
  """Whether all processes end; it only waits as long as they take."""
  end = time.monotonic() + seconds
  while any(map(is_alive, pids)) and time.monotonic() < end:
    time.sleep(0.05)
  return not any(map(is_alive, pids))


@pytest.mark.parametrize(('number', 'prefetch'), [(1, 5), (4, 2)])
def test_any_number_of_workers_makes_the_same_batches(tmp_path, number, prefetch):
  data = with_workers(make(tmp_path), number, prefetch=prefetch)
  batches = data.iterate(3)
  pids = [process.pid for process in batches._processes]
  kept = [next(batches) for _ in range(2 * number + prefetch + 3)]
  batches.close()
  assert len(pids) == number and not any(map(is_alive, pids))
  for step, batch in enumerate(kept, start=3):
    expected = data.batch(step)
    assert list(batch) == list(expected)
    for key, array in expected.items():
      assert batch[key].dtype == array.dtype
      np.testing.assert_array_equal(batch[key], array)


@pytest.mark.parametrize(
  ('fault', 'error', 'message'),
  [
    ('user', UserError, '^one line$'),
    ('other', RuntimeError, 'Unfit: a with b'),
    ('kill', UserError, 'config.data.num_workers: worker process .* ended by SIGKILL'),
  ],
)
def test_what_a_worker_raises_reaches_the_caller(tmp_path, fault, error, message):
  batches = with_workers(make(tmp_path, Reading(fault)), 2).iterate(0)
  pids = [process.pid for process in batches._processes]
  with pytest.raises(error, match=message):
    for _ in range(50):
      next(batches)
  batches.close()
  assert not any(map(is_alive, pids))


def test_what_cannot_be_sent_is_one_line(tmp_path):
  with pytest.raises(UserError, match='config.data.num_workers: the objective .* cannot be sent'):
    with_workers(make(tmp_path, Closed()), 1).iterate(0)


def test_signals_to_all_processes_do_not_reach_the_workers(tmp_path):
  batches = with_workers(make(tmp_path), 1).iterate(0)
  next(batches)
  (process,) = batches._processes
  for signum in (signal.SIGINT, signal.SIGTERM):
    os.kill(process.pid, signum)
  for _ in range(5):
    next(batches)
  assert is_alive(process.pid)
  batches.close()
  assert not is_alive(process.pid)


# A script as a user writes one: without `if __name__ == '__main__'` its workers could not start.
SCRIPT = """
import pathlib, sys
sys.path[:0] = [{tests!r}, {tests!r} + '/data', {root!r}]
import worker_cases
if __name__ == '__main__':
  data = worker_cases.with_workers(worker_cases.make(pathlib.Path({folder!r})), 2)
  batches = data.iterate(0)
  next(batches), next(batches)
  print(*(process.pid for process in batches._processes), flush=True)
  if {wait!r}:
    sys.stdin.read()
"""


@pytest.mark.parametrize('wait', [True, False])
def test_workers_end_with_their_parent(tmp_path, wait):
  """Killed, or at the end of a script that closes nothing."""
  script = tmp_path / 'script.py'
  names = {'tests': str(TESTS), 'root': str(TESTS.parent), 'folder': str(tmp_path), 'wait': wait}
  script.write_text(SCRIPT.format(**names))
  process = subprocess.Popen(
    [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  )
  pids = [int(pid) for pid in process.stdout.readline().split()]
  assert len(pids) == 2
  if wait:
    assert all(map(is_alive, pids))
    process.kill()
  assert process.wait(60) == (-signal.SIGKILL if wait else 0)
  assert ends_within(60, pids)
  process.stdin.close()
  process.stdout.close()


def group(pgid):
  """Processes of a process group that have not ended."""
  found = []
  for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = stat.read_text().rpartition(')')[2].split()
    except (FileNotFoundError, ProcessLookupError):
      continue
    if int(fields[2]) == pgid and fields[0] != 'Z':
      found.append(int(stat.parent.name))
  return found


@pytest.mark.full
def test_a_run_that_is_told_to_stop_saves_and_leaves_no_process(tmp_path):
  """SIGTERM to the whole group, as a cluster sends it; then the run goes on without workers."""
  text = '\n\n'.join(f'{i} and {i * i} are a number and its square.' for i in range(3000))
  (tmp_path / 'x.txt').write_text(text)
  command = [sys.executable, 'train.py', '--config=configs/nanogpt_char.py']
  command += [f'--workdir={tmp_path}/run', f'--config.data.train={tmp_path}/x.txt']
  command += ['--config.data.sampling=epochs', '--config.logging.every_steps=1']
  command += ['--config.model.num_layers=1', '--config.model.emb_dim=16']
  process = subprocess.Popen(
    [*command, '--config.total_steps=100000', '--config.data.num_workers=2'],
    cwd=TESTS.parent,
    start_new_session=True,
    stderr=subprocess.PIPE,
    text=True,
  )
  metrics = tmp_path / 'run' / 'metrics.jsonl'
  while process.poll() is None and not (metrics.exists() and metrics.read_text().count('\n') > 3):
    time.sleep(0.1)
  assert len(group(process.pid)) >= 3
  os.killpg(process.pid, signal.SIGTERM)
  _, said = process.communicate(timeout=120)
  assert process.returncode == 128 + signal.SIGTERM, said
  assert 'Traceback' not in said and 'the same command goes on' in said
  # Workers were waited for; multiprocessing's resource tracker ends when it sees that the run has.
  end = time.monotonic() + 30
  while group(process.pid) and time.monotonic() < end:
    time.sleep(0.1)
  assert not group(process.pid)
  (step,) = [int(path.name) for path in (tmp_path / 'run' / 'checkpoints').glob('[0-9]*')]
  going_on = [*command, f'--config.total_steps={step + 2}']
  done = subprocess.run(going_on, cwd=TESTS.parent, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0 and f'going on from step {step}' in done.stderr, done.stderr
