"""Runs of several real processes that talk to each other over the loopback."""

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
  """`count` processes of one command; a context that kills what is left of them."""

  def __init__(self, argv, count, folder, devices=DEVICES, heartbeat=10):
    self.logs = [folder / f'process-{i}.log' for i in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    flags = os.environ['XLA_FLAGS'] + f' --xla_force_host_platform_device_count={devices // count}'
    environ = os.environ | {'XLA_FLAGS': flags, 'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'}
    place = f'127.0.0.1:{free_port()}'
    self.outputs = [folder / f'process-{i}.out' for i in range(count)]
    self.all = []
    for i in range(count):
      mine = [sys.executable, *map(str, argv)]
      if count > 1:
        mine += [f'--coordinator={place}', f'--num_processes={count}', f'--process_id={i}']
        mine += [f'--heartbeat_timeout={heartbeat}', '--start_timeout=120']
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


def run(argv, count, folder, **options):
  """Runs to a good end; returns what each process wrote to standard output."""
  with Processes(argv, count, folder, **options) as processes:
    statuses = processes.wait()
    assert statuses == [0] * count, '\n\n'.join(log.read_text()[-3000:] for log in processes.logs)
    return [output.read_text() for output in processes.outputs]
