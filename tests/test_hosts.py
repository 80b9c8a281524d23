"""Training and evaluation by 1, 2 and 4 real processes with four devices in all."""

import json
import signal
import time

import numpy as np
import pytest
import tiny
from processes import Processes, free_port, run

from flaxlm import distributed
from flaxlm.training import checkpoint

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
    'optimizer__schedule': 'constant',
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


def test_a_mapped_step_goes_on_and_ends_like_that_of_one_process(alone, corpus, tmp_path):
  """With the state of `jit`: the second half of the run is mapped over the devices of both."""
  for steps, mode in ((STEPS // 2, 'jit'), (STEPS, 'pmap')):
    argv = train(corpus, tmp_path / 'run', total_steps=steps, parallelism=mode)
    run(argv, 2, tmp_path)
  same_losses(metrics(tmp_path / 'run'), metrics(alone))


def test_all_start_from_the_same_weights_and_go_back_together(alone, corpus, tmp_path):
  """From another run's weights, with spikes that are none: as one process does."""
  changes = {
    'init_from': alone, 'guard__policy': 'rollback', 'guard__spike_sigmas': 1.0,
    'guard__spike_window': 3, 'guard__max_rollbacks': 50, 'checkpoint__every_steps': 2,
  }  # fmt: skip
  found = {}
  for count in (1, 2):
    workdir = tmp_path / str(count) / 'run'
    # The tokenizer is that of the weights.
    argv = [word for word in train(corpus, workdir, **changes) if 'tokenizer' not in word]
    run(argv, count, workdir.parent)
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    found[count] = [line['rollbacks'] for line in lines if line['split'] == 'train']
    report = json.loads((workdir / 'restore_report.json').read_text())
    assert report['loaded'] and not report['fresh']
  assert found[1] == found[2] and found[1][-1] > 0
  same_losses(metrics(tmp_path / '2' / 'run'), metrics(tmp_path / '1' / 'run'))


def test_only_the_first_process_writes_and_reports(several):
  count, folder = several
  assert sorted(path.name for path in (folder / 'run').iterdir()) == [
    *('.lock', 'checkpoints', 'config.json', 'metrics.jsonl', 'overrides.json', 'tokenizer')
  ]
  lines = (folder / 'run' / 'metrics.jsonl').read_text().splitlines()
  assert len(lines) == STEPS + 2
  assert 'done at step' in (folder / 'process-0.log').read_text()
  for number in range(1, count):
    said = (folder / f'process-{number}.log').read_text()
    assert 'train' not in said.replace('train.py', '') and 'done at step' not in said


@pytest.fixture(scope='module')
def evaluated_alone(alone, tmp_path_factory):
  """What eval.py of one process says of the run of one process."""
  folder = tmp_path_factory.mktemp('evaluated')
  return json.loads(run(['eval.py', f'--workdir={alone}'], 1, folder)[0])['validation']


def test_several_processes_evaluate_as_one_does(several, evaluated_alone, tmp_path):
  """Two of them learn of each other as under SLURM."""
  count, folder = several
  argv = ['eval.py', f'--workdir={folder / "run"}']
  first, *others = run(argv, count, tmp_path, slurm=count == 2)
  assert others == [''] * (count - 1)
  found = json.loads(first)['validation']
  assert found.keys() == evaluated_alone.keys()
  for key, value in evaluated_alone.items():
    np.testing.assert_allclose(found[key], value, rtol=1e-5, err_msg=key)


def wait_for_step(processes, workdir, step):
  """Returns when a run has a checkpoint of this step or a later one."""
  end = time.monotonic() + 240
  while time.monotonic() < end and all(process.poll() is None for process in processes.all):
    if max(checkpoint.steps_in(workdir / 'checkpoints'), default=0) >= step:
      return
    time.sleep(0.05)
  raise AssertionError('\n\n'.join(log.read_text()[-2000:] for log in processes.logs))


def same_beginning(workdir, alone):
  """Whether a run's losses are those of one process, as far as that went."""
  found = metrics(workdir)
  same_losses(
    *(
      {key: of[key] for key in metrics(alone) if key[0] == 'train'}
      for of in (found, metrics(alone))
    )
  )


@pytest.mark.parametrize(('killed', 'count'), [(1, 2), (0, 4)])
def test_when_a_process_is_killed_the_others_end_and_the_run_goes_on(
  alone, corpus, tmp_path, killed, count
):
  """And goes on with another number of processes: one."""
  workdir = tmp_path / 'run'
  endless = train(corpus, workdir, total_steps=100_000, checkpoint__keep_every_steps=4)
  with Processes(endless, count, tmp_path) as processes:
    wait_for_step(processes, workdir, 8)
    processes.all[killed].send_signal(signal.SIGKILL)
    statuses = processes.wait(timeout=60)  # heartbeat_timeout is 10 s
    for number in set(range(count)) - {killed}:
      # Its own check, JAX's, or a word of the one that noticed first.
      said = processes.said(number)
      # JAX ends a process by SIGABRT, which a shell reports as the same status.
      assert statuses[number] in (distributed.LOST, -signal.SIGABRT), said[-3000:]
      assert 'lost another one' in said or 'another task died' in said, said[-3000:]
  last = max(checkpoint.steps_in(workdir / 'checkpoints'))
  if count == 4:
    return  # The second half is the same.
  run(train(corpus, workdir, total_steps=last + 4), 1, tmp_path / 'again')
  assert f'going on from step {last}' in (tmp_path / 'again' / 'process-0.log').read_text()
  assert max(checkpoint.steps_in(workdir / 'checkpoints')) == last + 4
  same_beginning(workdir, alone)


def test_a_signal_to_one_process_stops_all_at_one_step(alone, corpus, tmp_path):
  workdir = tmp_path / 'run'
  endless = train(corpus, workdir, total_steps=100_000, checkpoint__every_steps=50_000)
  with Processes(endless, 2, tmp_path) as processes:
    end = time.monotonic() + 240
    while len(list(workdir.glob('metrics.jsonl'))) == 0 or len(metrics(workdir)) < STEPS + 3:
      assert time.monotonic() < end and processes.all[0].poll() is None, processes.said(0)[-3000:]
      time.sleep(0.05)
    processes.all[1].send_signal(signal.SIGTERM)
    assert processes.wait(timeout=120) == [143, 143], processes.said(0)[-3000:]
    step = max(checkpoint.steps_in(workdir / 'checkpoints'))
    assert f'stopped by SIGTERM at step {step};' in processes.said(0)
  assert max(key[1] for key in metrics(workdir)) == step
  same_beginning(workdir, alone)


def test_a_mistake_on_one_host_ends_all(corpus, tmp_path):
  """The data are there for process 0 only."""
  argv = train(corpus, tmp_path / 'run', data__train="'{}'")
  script = tmp_path / 'start.py'
  script.write_text(
    'import sys, runpy\n'
    'first = "--process-id=0" in sys.argv\n'
    f'text = {str(corpus / "text.txt")!r}\n'
    'place = text if first else text + ".missing"\n'
    'sys.argv = [word.format(place).replace("\'", "") for word in sys.argv[1:]]\n'
    'runpy.run_path("train.py", run_name="__main__")\n'
  )
  with Processes([script, *argv], 2, tmp_path) as processes:
    assert processes.wait(timeout=120) == [1, 1], processes.said(0)
    assert 'process 1 of 2 failed: error: ' in processes.said(0)
    assert 'text.txt.missing' in processes.said(0)


def test_texts_are_written_by_all_and_scored_by_one(corpus, tmp_path):
  """A task with predictions and written texts: two processes and divided weights, and one."""
  changes = {
    'model__num_layers': 1, 'model__emb_dim': 16, 'model__num_heads': 2, 'data__max_length': 32,
    'data__train': corpus / 'rows.tsv', 'total_steps': 3, 'evaluation__every_steps': 3,
    'evaluation__max_new_tokens': 6, 'tokenizer__name': 'bytes', 'mesh': '2,2,1',
    'task__target_column': 'target',
  }  # fmt: skip
  workdir = tmp_path / 'run'
  flags = [f'--config.{key.replace("__", ".")}={value}' for key, value in changes.items()]
  place = '--config=configs/translate.py:encoder_decoder'
  run(['train.py', place, f'--workdir={workdir}', *flags], 2, tmp_path / 'two')
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  found = next(line for line in lines if line['split'] == 'validation')
  expected = json.loads(run(['eval.py', f'--workdir={workdir}'], 1, tmp_path / 'one')[0])
  for key, value in expected['validation'].items():
    if key in found:
      np.testing.assert_allclose(found[key], value, rtol=1e-5, err_msg=key)
  assert {'loss', 'bleu'} <= found.keys() & expected['validation'].keys()


ROWS = """
import sys
import numpy as np
from flaxlm import commandline, distributed, sharding

def main(argv):
  parser = commandline.Parser('')
  distributed.add_flags(parser)
  distributed.start(distributed.settings(parser.parse(argv)))
  whole = np.arange(24 * 2).reshape(24, 2)
  rules = {'batch': ('data', 'fsdp')}
  for shape in ((6, 1, 1), (3, 2, 1), (2, 1, 3), (1, 3, 2), (1, 1, 6)):
    rows = sharding.batch_sharding(sharding.make_mesh(shape), rules)
    parts, count = sharding.host_parts(rows)
    size = 24 // count
    mine = np.concatenate([whole[part * size : (part + 1) * size] for part in parts])
    placed = sharding.place_rows({'x': mine}, rows)['x']
    assert placed.shape == whole.shape
    for shard in placed.addressable_shards:
      np.testing.assert_array_equal(shard.data, whole[shard.index])
    print(shape, parts, count)

sys.exit(commandline.run(main, sys.argv[1:]))
"""


def test_rows_reach_their_devices_on_every_mesh(tmp_path):
  """Three processes of two devices: some share all their rows, some a part of them."""
  script = tmp_path / 'rows.py'
  script.write_text(ROWS)
  outputs = run([script], 3, tmp_path, devices=6)
  assert [output.splitlines()[2] for output in outputs] == [
    '(2, 1, 3) (0,) 2', '(2, 1, 3) (0, 1) 2', '(2, 1, 3) (1,) 2'
  ]  # fmt: skip


@pytest.mark.parametrize('number', [0, 1])
def test_who_waits_in_vain_for_the_others_says_so(tmp_path, number):
  place = f'--coordinator=127.0.0.1:{free_port()}'
  argv = ['eval.py', f'--workdir={tmp_path}', place, '--num-processes=2']
  argv += [f'--process-id={number}', '--start-timeout=2']
  with Processes(argv, 1, tmp_path) as processes:
    assert processes.wait(timeout=60) == [distributed.LOST]
    last = processes.said(0).splitlines()[-1]
    assert last.startswith('error: the processes of the run did not find each other in 2 s')
