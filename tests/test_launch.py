"""The scripts of launch/: checked, documented, and run with stand-ins for the clouds' commands."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / 'launch').glob('*.sh'))


def bash(script, *argv, **environ):
  return subprocess.run(
    ['bash', ROOT / 'launch' / script, *map(str, argv)],
    env=os.environ | environ, capture_output=True, text=True, timeout=60, cwd=ROOT,
  )  # fmt: skip


def test_shellcheck_finds_nothing():
  checker = pathlib.Path(sys.executable).with_name('shellcheck')
  done = subprocess.run([checker, *SCRIPTS], capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (0, '')


def test_every_script_is_documented_and_every_documented_script_exists():
  guide = (ROOT / 'docs' / 'pods.md').read_text()
  for script in SCRIPTS:
    assert f'launch/{script.name}' in guide, script.name
    assert os.access(script, os.X_OK), script.name
  named = {
    word.strip('`.,;:()') for word in guide.split() if word.strip('`(').startswith('launch/')
  }
  assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize('script', [script.name for script in SCRIPTS])
def test_without_what_it_needs_a_script_ends_in_one_line(script):
  cleared = dict.fromkeys(('NAME', 'ZONE', 'ACCELERATOR', 'CLUSTER', 'WORKLOAD', 'TPU'), '')
  if script == 'restart.sh':
    return  # an empty command is a success
  done = bash(script, **cleared)
  assert done.returncode and not done.stdout and len(done.stderr.splitlines()) == 1


# Statuses that the stand-in for a run returns one after another.
@pytest.mark.parametrize(
  ('statuses', 'restarts', 'ends', 'runs'),
  [
    ('0', 3, 0, 1),
    ('134 137 0', 3, 0, 3),
    ('1', 3, 1, 1),
    ('134 143', 3, 143, 2),
    ('134 134 134', 1, 134, 2),
  ],
)
def test_a_run_is_started_again_where_that_may_help(tmp_path, statuses, restarts, ends, runs):
  place = tmp_path / 'statuses'
  place.write_text('\n'.join(statuses.split()) + '\n')
  take = f'read -r n < {place}; sed -i 1d {place}; echo run; exit $n'
  done = bash('restart.sh', 'bash', '-c', take, RESTARTS=str(restarts), PAUSE='0')
  assert done.returncode == ends
  assert done.stdout.count('run') == runs


def test_a_signal_reaches_the_command_that_is_run_again(tmp_path):
  inner = 'trap "sleep 0.2; exit 143" TERM; echo ready; while true; do sleep 0.05; done'
  process = subprocess.Popen(
    ['bash', ROOT / 'launch' / 'restart.sh', 'bash', '-c', inner], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'ready\n'
  process.terminate()
  assert process.wait(20) == 143


def test_processes_of_one_machine_know_their_numbers():
  show = 'echo $JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS; '
  done = bash('local.sh', 3, 'bash', '-c', show + 'exit $JAX_PROCESS_ID', PORT='4321')
  assert sorted(done.stdout.splitlines()) == [f'{i} of 3 at 127.0.0.1:4321' for i in range(3)]
  assert done.returncode == 1  # of the first that failed


@pytest.fixture
def cloud(tmp_path):
  """Stand-ins for gcloud, xpk and SLURM's commands: they note their arguments, a line a call."""
  notes = tmp_path / 'notes'
  notes.touch()
  states = tmp_path / 'states'
  states.write_text('WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n')
  for name in ('gcloud', 'xpk', 'srun', 'scontrol', 'squeue'):
    (tmp_path / name).write_text(
      f'#!/usr/bin/env bash\necho {name} "$@" >> {notes}\n'
      f'case "$*" in *describe*) head -n1 {states}; sed -i 1d {states};; esac\n'
      f'[[ {name} != srun ]] || exit "$STATUS"\n'
      f'[[ {name} != squeue ]] || echo "${{STATE:-RUNNING}}"\n'
    )
    (tmp_path / name).chmod(0o755)
  environ = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'NAME': 'n', 'ZONE': 'z', 'PAUSE': '0'}
  return environ, lambda: notes.read_text().splitlines(), states


@pytest.mark.parametrize(
  ('accelerator', 'runtime'),
  [
    ('v5litepod-64', 'v2-alpha-tpuv5-lite'),
    ('v5p-128', 'v2-alpha-tpuv5'),
    ('v6e-64', 'v2-alpha-tpuv6e'),
  ],
)
def test_a_slice_is_asked_for_with_its_software(cloud, accelerator, runtime):
  environ, called, _ = cloud
  done = bash('tpu_create.sh', '--spot', ACCELERATOR=accelerator, **environ)
  assert done.returncode == 0, done.stderr
  assert called()[0] == (
    'gcloud compute tpus queued-resources create n --node-id=n --zone=z '
    f'--accelerator-type={accelerator} --runtime-version={runtime} --spot'
  )
  assert [line.split()[-1] for line in done.stdout.splitlines()][-1] == 'ACTIVE'


def test_a_slice_that_failed_is_an_error(cloud):
  environ, _, states = cloud
  states.write_text('FAILED\n')
  done = bash('tpu_create.sh', ACCELERATOR='v6e-64', **environ)
  assert done.returncode == 1 and 'n is FAILED' in done.stderr


def test_the_same_command_goes_to_every_host(cloud):
  environ, called, _ = cloud
  argv = ['train.py', '--config=c.py', '--config.data.train=a b*.txt']
  assert bash('tpu_run.sh', *argv, **environ).returncode == 0
  assert '--worker=all' in called()[0]
  assert called()[0].endswith(
    r'restart.sh .venv/bin/python train.py --config=c.py --config.data.train=a\ b\*.txt '
  )
  more = {'CLUSTER': 'c', 'WORKLOAD': 'w', 'TPU': 'v6e-64', 'IMAGE': 'i'}
  assert bash('gke_run.sh', *argv, **environ, **more).returncode == 0
  assert '--cluster=c --workload=w --tpu-type=v6e-64 --num-slices=1' in called()[1]


@pytest.mark.parametrize(('status', 'again'), [(0, False), (1, False), (134, True), (143, True)])
def test_slurm_starts_a_job_again_that_can_go_on(cloud, status, again):
  environ, called, _ = cloud
  argv = ['train.py', '--workdir=w']
  done = bash('slurm.sh', *argv, STATUS=str(status), SLURM_JOB_ID='7', **environ)
  assert done.returncode == status
  assert ('scontrol requeue 7' in called()) == again


def test_slurm_does_not_start_what_was_cancelled_again(cloud):
  environ, called, _ = cloud
  environ = {'STATUS': '143', 'STATE': 'COMPLETING', 'SLURM_JOB_ID': '7', **environ}
  assert bash('slurm.sh', 'train.py', '--workdir=w', **environ).returncode == 143
  assert not [line for line in called() if line.startswith('scontrol')]


@pytest.mark.parametrize(('status', 'again'), [(137, False), (143, True)])
def test_slurm_does_not_start_what_is_killed_again_for_ever(cloud, status, again):
  environ, called, _ = cloud
  environ = {'STATUS': str(status), 'SLURM_JOB_ID': '7', 'SLURM_RESTART_COUNT': '20', **environ}
  assert bash('slurm.sh', 'train.py', '--workdir=w', **environ).returncode == status
  assert ('scontrol requeue 7' in called()) == again
