"""Training and evaluation by 1, 2 and 4 real processes with four devices in all."""

import json
import os
import signal
import time

import numpy as np
import pytest
import tiny
from processes import Processes, run

pytestmark = pytest.mark.full

STEPS = 12


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('hosts'))


def overrides(corpus, **changes):
  """Flags of a decoder of bytes that compiles in seconds; __ stands for a dot."""
  fields = {
    'model__num_layers': 1, 'model__emb_dim': 16, 'model__num_heads': 2, 'model__max_length': 32,
    'tokenizer__name': 'bytes', 'data__train': corpus / 'text.txt', 'global_batch_size': 8,
    'total_steps': STEPS, 'checkpoint__every_steps': 4, 'evaluation__every_steps': 6,
    'evaluation__max_batches': 5, 'logging__every_steps': 1, 'optimizer__warmup_steps': 2,
  } | changes  # fmt: skip
  return [f'--config.{key.replace("__", ".")}={value}' for key, value in fields.items()]


def train(corpus, workdir, place='configs/gpt2.py:mini', **changes):
  return ['train.py', f'--config={place}', f'--workdir={workdir}', *overrides(corpus, **changes)]


def metrics(workdir):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return {(line['split'], line['step']): line['loss'] for line in lines}


def same_losses(found, expected):
  assert found.keys() == expected.keys()
  np.testing.assert_allclose([found[key] for key in expected], list(expected.values()), rtol=1e-5)


@pytest.fixture(scope='module')
def alone(corpus, tmp_path_factory):
  """The workdir of one process."""
  folder = tmp_path_factory.mktemp('alone')
  run(train(corpus, folder / 'run'), 1, folder)
  return folder / 'run'


@pytest.fixture(scope='module', params=[(2, '-1,1,1'), (4, '2,2,1')], ids=str)
def several(request, corpus, tmp_path_factory):
  """(number of processes, the workdir of a run of so many)."""
  count, mesh = request.param
  folder = tmp_path_factory.mktemp('several')
  run(train(corpus, folder / 'run', mesh=mesh), count, folder)
  return count, folder


def test_losses_are_those_of_one_process(alone, several):
  same_losses(metrics(several[1] / 'run'), metrics(alone))


def test_only_the_first_process_writes_and_reports(several):
  count, folder = several
  assert sorted(path.name for path in (folder / 'run').iterdir()) == [
    *('checkpoints', 'config.json', 'metrics.jsonl', 'overrides.json', 'tokenizer')
  ]
  lines = (folder / 'run' / 'metrics.jsonl').read_text().splitlines()
  assert len(lines) == STEPS + 2
  assert 'done at step' in (folder / 'process-0.log').read_text()
  for number in range(1, count):
    said = (folder / f'process-{number}.log').read_text()
    assert 'train' not in said.replace('train.py', '') and 'done at step' not in said


def test_one_process_reads_the_checkpoint_of_several(alone, several, tmp_path):
  """And evaluates as they do."""
  count, folder = several
  argv = ['eval.py', f'--workdir={folder / "run"}']
  results = [json.loads(run(argv, 1, tmp_path / '1')[0])]
  found = run(argv, count, tmp_path / 'n')
  assert found[1:] == [''] * (count - 1)
  results.append(json.loads(found[0]))
  results.append(json.loads(run(['eval.py', f'--workdir={alone}'], 1, tmp_path / 'alone')[0]))
  for result in results[1:]:
    for key, value in results[0]['validation'].items():
      np.testing.assert_allclose(result['validation'][key], value, rtol=1e-5, err_msg=key)


def step_reached(processes, step, number=0):
  """Waits until the log of a run tells of a checkpoint of this step."""
  end = time.monotonic() + 240
  while time.monotonic() < end:
    if any(process.poll() is not None for process in processes.all):
      break
    if (processes.workdir / 'checkpoints' / str(step)).exists():
      return
    time.sleep(0.05)
  raise AssertionError('\n\n'.join(log.read_text()[-2000:] for log in processes.logs))


@pytest.mark.parametrize(('killed', 'count', 'then'), [(1, 2, 1), (0, 4, 2)])
def test_a_process_is_killed(alone, corpus, tmp_path, killed, count, then):
  """The others end by themselves; the run goes on with another number of processes."""
  workdir = tmp_path / 'run'
  slow = train(corpus, workdir, total_steps=5000, checkpoint__keep_every_steps=4)
  with Processes(slow, count, tmp_path) as processes:
    processes.workdir = workdir
    step_reached(processes, 8)
    processes.all[killed].send_signal(signal.SIGKILL)
    statuses = processes.wait(timeout=60)  # heartbeat_timeout is 10 s
    for number in set(range(count)) - {killed}:
      assert statuses[number] not in (0, None)
      said = processes.said(number)
      assert 'lost another one' in said or 'failed: ' in said or 'another task died' in said
  for path in (workdir / 'checkpoints').iterdir():
    if path.name.isdigit() and int(path.name) > 8:
      os.rename(path, tmp_path / path.name)
  run(train(corpus, workdir), then, tmp_path / 'again')
  assert 'going on from step 8' in (tmp_path / 'again' / 'process-0.log').read_text()
  expected = {key: loss for key, loss in metrics(alone).items() if key[0] == 'train'}
  found = {key: loss for key, loss in metrics(workdir).items() if key in expected}
  assert found.keys() == expected.keys()
