"""Flags of several processes, and who waits for whom; real processes are in test_hosts.py."""

import threading
import time

import jax
import pytest

from flaxlm import commandline, distributed
from flaxlm.errors import UserError
from flaxlm.training.interrupt import Interrupted


def settings(*argv, **environ):
  parser = commandline.Parser('A test.')
  distributed.add_flags(parser)
  return distributed.settings(parser.parse(argv), environ)


def test_flags_come_before_the_environment():
  assert settings() == distributed.Settings()
  environ = {'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '3'}
  found = settings(**environ)
  assert (found.coordinator, found.num_processes, found.process_id) == ('a:1', 4, 3)
  found = settings('--coordinator=b:2', '--num-processes=8', '--heartbeat-timeout=7', **environ)
  assert (found.coordinator, found.num_processes, found.process_id) == ('b:2', 8, 3)
  assert found.heartbeat_timeout == 7
  assert settings('--distributed=off', **environ) == distributed.Settings(detect=False)


@pytest.mark.parametrize(
  ('argv', 'environ', 'message'),
  [
    (['--coordinator=host'], {}, "--coordinator: 'host' is not HOST:PORT"),
    (['--process-id=2', '--num-processes=2'], {}, '--process-id: 2 is not below'),
    ([], {'JAX_NUM_PROCESSES': 'two'}, "JAX_NUM_PROCESSES: 'two' is not"),
    (['--start-timeout=0'], {}, '--start-timeout: needs'),
  ],
)
def test_a_wrong_place_of_the_others_is_a_user_error(argv, environ, message):
  with pytest.raises(UserError) as error:
    settings(*argv, **environ)
  assert str(error.value).startswith(message)


def test_one_process_starts_nothing():
  distributed.start(distributed.Settings(num_processes=1))
  distributed.start(distributed.Settings(detect=False))
  assert (distributed.count(), distributed.index()) == (1, 0)
  made = []
  distributed.prepare(lambda: bool(made), lambda: made.append(1), 'make')
  distributed.prepare(lambda: bool(made), lambda: made.append(1), 'make')
  assert made == [1]
  assert distributed.all_agree(True) and not distributed.all_agree(False)
  assert distributed.gather('a') == ['a']


def test_a_flag_that_is_missing_is_named(monkeypatch):
  def initialize(*args, **options):
    raise ValueError('The process id of the current process must be defined.')

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  with pytest.raises(UserError, match='--process-id: needed beside the others'):
    distributed.start(distributed.Settings('127.0.0.1:1', num_processes=2))
  distributed.start(distributed.Settings())  # No cluster either: one process.
  assert distributed.count() == 1


class Store:
  """The key-value store of the coordination service, for threads."""

  def __init__(self):
    self.values, self.changed = {}, threading.Condition()

  def key_value_set(self, key, value):
    with self.changed:
      assert key not in self.values
      self.values[key] = value
      self.changed.notify_all()

  def blocking_key_value_get(self, key, timeout_ms):
    with self.changed:
      if not self.changed.wait_for(lambda: key in self.values, timeout_ms / 1000):
        raise RuntimeError('DEADLINE_EXCEEDED: GetKeyValue() timed out')
      return self.values[key]

  def key_value_delete(self, key):
    with self.changed:
      del self.values[key]


class Threads:
  """Threads that take themselves for the processes of a run."""

  def __init__(self, monkeypatch, hosts, limit=20):
    self.local, self.hosts = threading.local(), hosts
    store, met = Store(), threading.Barrier(len(hosts))
    state = threading.local()

    def own():
      if not hasattr(state, 'value'):
        limits = distributed.Settings(prepare_timeout=limit)
        state.value = distributed._State(limits, tuple(hosts))
      return state.value

    class Own:
      def __getattr__(self, name):
        return getattr(own(), name)

      def __setattr__(self, name, value):
        setattr(own(), name, value)

    monkeypatch.setattr(distributed, '_STATE', Own())
    monkeypatch.setattr(distributed, '_SLICE_MS', 50)
    monkeypatch.setattr(distributed, '_client', lambda: store)
    monkeypatch.setattr(distributed, '_wait_at_barrier', lambda name: met.wait(limit))
    monkeypatch.setattr(distributed, 'count', lambda: len(hosts))
    monkeypatch.setattr(distributed, 'index', lambda: self.local.index)

  def run(self, work):
    """Calls work(number) in each; returns what they return or raise."""
    results = [None] * len(self.hosts)

    def one(number):
      self.local.index = number
      try:
        results[number] = work(number)
      except Exception as error:
        results[number] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(self.hosts))]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return results


@pytest.mark.parametrize(
  ('disks', 'makers'),
  [
    ('xxxx', [0]),  # one disk for all
    ('xxyy', [0, 2]),  # one of each host
    ('xxyz', [0, 2, 3]),  # one of each process, on the second host
    ('xxyx', [0, 2]),
  ],
)
def test_what_is_prepared_is_made_once_on_each_disk(monkeypatch, disks, makers):
  made, done = [], {}

  def work(number):
    def make():
      time.sleep(0.1)
      made.append(number)
      done[disks[number]] = True

    distributed.prepare(lambda: disks[number] in done, make, 'make it')
    return len(done)

  results = Threads(monkeypatch, ['a', 'a', 'b', 'b']).run(work)
  assert sorted(made) == makers
  assert results == [len(set(disks))] * 4  # None goes on before all are done.


def test_a_wait_that_is_too_long_ends_in_one_line(monkeypatch):
  def work(number):
    if number:
      distributed.prepare(lambda: False, lambda: None, 'tokenise text.txt')

  results = Threads(monkeypatch, ['a', 'b'], limit=0.3).run(work)
  assert str(results[1]) == 'waited 0.3 s for process 0 to tokenise text.txt (--prepare-timeout)'


def test_all_hear_what_each_has_to_say(monkeypatch):
  def work(number):
    agreed = distributed.all_agree(number != 1), distributed.all_agree(True)
    return *agreed, distributed.gather(str(number))

  expected = False, True, ['0', '1', '2']
  assert Threads(monkeypatch, ['a', 'b', 'c']).run(work) == [expected] * 3


# How a process of several ends.


@pytest.fixture
def several(monkeypatch):
  """What a process of two tells the other at its end."""
  told = []

  def fail(text, status):
    told.append((text, status))
    raise SystemError  # in place of os._exit

  monkeypatch.setattr(distributed, 'count', lambda: 1 if 'leave' in told else 2)
  monkeypatch.setattr(distributed, 'index', lambda: 1)
  monkeypatch.setattr(distributed, 'fail', fail)
  monkeypatch.setattr(distributed, 'leave', lambda: told.append('leave'))
  return told


def raising(error):
  def main(argv):
    raise error

  return main


@pytest.mark.parametrize(
  ('error', 'text', 'status'),
  [
    (UserError('config.a: wrong'), 'error: config.a: wrong', 1),
    (ZeroDivisionError('x'), "ZeroDivisionError('x')", 1),
    (Interrupted(15), 'process 1 was stopped alone: status 143', 143),
    (
      RuntimeError('Gloo all-reduce failed: Connection closed by peer'),
      'error: process 1 of 2 lost another one (Gloo all-reduce failed: Connection closed by peer)',
      distributed.LOST,
    ),
  ],
)
def test_a_failure_of_one_is_told_to_the_others(several, capsys, error, text, status):
  with pytest.raises(SystemError):
    commandline.run(raising(error), [])
  assert len(several) == 1
  assert several[0][0].startswith(text) and several[0][1] == status
  assert ('Traceback' in capsys.readouterr().err) == isinstance(error, ZeroDivisionError)


def test_an_end_that_all_agreed_on_is_no_failure(several):
  with pytest.raises(Interrupted):
    commandline.run(raising(Interrupted(15, everywhere=True)), [])
  assert commandline.run(lambda argv: 0, []) == 0
  assert several == ['leave', 'leave']


def test_an_error_that_all_have_ends_each_with_its_line(several, capsys):
  error = UserError('step 7: loss nan')
  error.everywhere = True
  assert commandline.run(raising(error), []) == 1
  assert several == ['leave']
  assert capsys.readouterr().err == 'error: step 7: loss nan\n'
