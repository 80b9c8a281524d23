"""Programs in processes of their own: several that talk over the loopback, or one with devices."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
DEVICES = 4  # of all processes together


def free_port():
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


class Processes:
  """`count` processes of one command; a context that kills what is left of them.

  slurm: they learn of each other from the variables that srun sets, and not from flags.
  """

  def __init__(self, argv, count, folder, devices=DEVICES, heartbeat=10, slurm=False):
    self.logs = [folder / f'process-{i}.log' for i in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    flags = os.environ['XLA_FLAGS'] + f' --xla_force_host_platform_device_count={devices // count}'
    environ = os.environ | {'XLA_FLAGS': flags, 'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'}
    port = free_port()
    self.outputs = [folder / f'process-{i}.out' for i in range(count)]
    self.all = []
    for i in range(count):
      mine = [sys.executable, *map(str, argv)]
      if slurm:
        environ |= {
          'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': '127.0.0.1', 'SLURM_NTASKS': str(count),
          'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i), 'JAX_COORDINATOR_PORT': str(port),
        }  # fmt: skip
      elif count > 1:
        mine += [f'--coordinator=127.0.0.1:{port}', f'--num-processes={count}', f'--process-id={i}']
      if count > 1:
        mine += [f'--heartbeat-timeout={heartbeat}', '--start-timeout=120']
      with self.logs[i].open('w') as log, self.outputs[i].open('w') as output:
        process = subprocess.Popen(mine, cwd=ROOT, env=environ, stdout=output, stderr=log)
      self.all.append(process)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.all:
      process.kill()
      process.wait()

  def wait(self, timeout=240):
    """Exit statuses."""
    return [process.wait(timeout) for process in self.all]

  def said(self, number):
    return self.logs[number].read_text()


def start(*words, folder=ROOT):
  """A Python program in a process of its own, whose output is in its pipes."""
  return subprocess.Popen(
    [sys.executable, *map(str, words)],
    env=os.environ | {'PYTHONPATH': str(ROOT)}, cwd=folder,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def finish(process, status=0, timeout=300):
  """(stdout, stderr) of a process that ends with this status, and without a traceback."""
  output, errors = process.communicate(timeout=timeout)
  assert process.returncode == status, errors
  assert 'Traceback' not in errors
  return output, errors


def simulated(program, *arguments, devices=8, folders=()):
  """What a program prints in a process that sees so many devices; `folders` are to import from."""
  flags = os.environ['XLA_FLAGS'] + f' --xla_force_host_platform_device_count={devices}'
  path = ':'.join(map(str, (ROOT, ROOT / 'tests', *folders)))
  result = subprocess.run(
    [sys.executable, '-c', program, *arguments],
    env=os.environ | {'XLA_FLAGS': flags, 'PYTHONPATH': path},
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert not result.returncode, result.stderr[-3000:]
  return result.stdout


def run(argv, count, folder, **options):
  """Runs to a good end; returns what each process wrote to standard output."""
  with Processes(argv, count, folder, **options) as processes:
    statuses = processes.wait()
    assert statuses == [0] * count, '\n\n'.join(log.read_text()[-3000:] for log in processes.logs)
    return [output.read_text() for output in processes.outputs]
