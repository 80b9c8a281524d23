"""Several processes that work as one: how they find each other, wait for each other, and end.

A run on several hosts is the same command on each. JAX finds the others from TPU metadata, SLURM,
Open MPI or Kubernetes; elsewhere flags or the environment say where process 0 listens. On one host
without any of them nothing is started, and every function here returns at once.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from flaxlm import terminal
from flaxlm.errors import UserError, first_line, flag

# Flags that say what no cluster tells, and the variables that stand in for them.
VARIABLES = {
  'coordinator': 'JAX_COORDINATOR_ADDRESS',
  'num_processes': 'JAX_NUM_PROCESSES',
  'process_id': 'JAX_PROCESS_ID',
}
# Exit status of a process that lost another one: starting all of them again is worth a try. It is
# that of SIGABRT, by which JAX ends a process whose others no longer answer.
LOST = 134
# How long process 0, through which the others hear of it, stays after a failure.
_GRACE_SECONDS = 1.0
_SLICE_MS = 2000  # Of a wait; in between, Python sees signals.
_PREFIX = 'flaxlm'
# What libraries call a connection to another process that has ended.
_CONNECTION = (
  *('gloo', 'nccl', 'connection reset', 'connection closed', 'connection refused', 'broken pipe'),
  *('heartbeat', 'coordination service', 'another task', 'unavailable:', 'socket closed'),
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Where the other processes are (None: the cluster says so), and how long to wait; in seconds."""

  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  detect: bool = True
  start_timeout: int = 300
  heartbeat_timeout: int = 60
  shutdown_timeout: int = 300
  prepare_timeout: int = 6 * 3600


@dataclasses.dataclass
class _State:
  settings: Settings = dataclasses.field(default_factory=Settings)
  hosts: tuple[str, ...] = ()  # name of the host of each process
  meetings: int = 0  # barriers and preparations so far, which are the same in every process
  watch: threading.Thread | None = None


_STATE = _State()


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Declares the flags of `settings`."""
  group = parser.add_argument_group(
    'several processes', 'The same command on every host; most clusters need none of these.'
  )
  add = group.add_argument
  add('--coordinator', help='HOST:PORT at which process 0 listens')
  add('--num-processes', type=int, help='how many there are')
  add('--process-id', type=int, help='which of them this is, from 0')
  add(
    '--distributed', choices=('auto', 'off'), default='auto', help='off: no cluster, no variables'
  )
  defaults = Settings()
  for name, what in (
    ('start', 'for all processes to be there'),
    ('heartbeat', 'until a process that no longer answers counts as lost'),
    ('shutdown', 'for the others at the end'),
    ('prepare', 'for a process that prepares data for the others'),
  ):
    seconds = getattr(defaults, f'{name}_timeout')
    add(f'--{name}-timeout', type=int, default=seconds, help=f'seconds {what} ({seconds})')


def settings(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Settings:
  """Settings from the flags of `add_flags` or, where these are not given, from `VARIABLES`.

  With --distributed=off the variables, which a whole allocation may have, are not read either.
  """
  found: dict[str, Any] = {}
  environ = environ if args.distributed == 'auto' else {}
  for name, variable in VARIABLES.items():
    value, source = getattr(args, name), flag(name)
    if value is None and environ.get(variable):
      value, source = environ[variable], variable
    if name == 'coordinator':
      if value is not None and not value.rpartition(':')[2].isdigit():
        raise UserError(f'{source}: {value!r} is not HOST:PORT')
    elif value is not None:
      if not str(value).isdigit():
        raise UserError(f'{source}: {value!r} is not a whole number')
      value = int(value)
    found[name] = value
  count, number = found['num_processes'], found['process_id']
  if count is not None and number is not None and number >= count:
    raise UserError(f'--process-id: {number} is not below --num-processes={count}')
  for name in ('start', 'heartbeat', 'shutdown', 'prepare'):
    found[f'{name}_timeout'] = getattr(args, f'{name}_timeout')
    if found[f'{name}_timeout'] < 1:
      raise UserError(f'--{name}-timeout: needs 1 second at least')
  return Settings(**found, detect=args.distributed == 'auto')


def start(settings: Settings) -> None:
  """Connects the processes of a run, if there are several. Comes before any other use of JAX.

  If they are not all there in time, the process ends.

  Raises:
    UserError: if part of what is needed is not known.
  """
  named = [getattr(settings, name) for name in VARIABLES]
  if settings.num_processes == 1 or (not settings.detect and all(n is None for n in named)):
    return
  import jax

  # Signals are ours: JAX's own service would swallow SIGTERM (training/interrupt.py).
  jax.config.update('jax_enable_preemption_service', False)
  if None not in named:
    terminal.say(f'process {named[2]} of {named[1]}: looking for {named[0]}')
  # Ours speaks first: JAX ends the process with a stack trace.
  alarm = threading.Timer(settings.start_timeout, _not_all_there, [settings])
  alarm.daemon = True
  alarm.start()
  try:
    jax.distributed.initialize(
      *named,
      cluster_detection_method=None if settings.detect and None in named else 'deactivate',
      initialization_timeout=settings.start_timeout + 30,
      heartbeat_timeout_seconds=settings.heartbeat_timeout,
      shutdown_timeout_seconds=settings.shutdown_timeout,
    )
  except ValueError as error:
    if all(value is None for value in named):
      return  # no cluster: one process
    missing = next((name for name in VARIABLES if getattr(settings, name) is None), 'coordinator')
    raise UserError(f'{flag(missing)}: needed beside the others, and no cluster says it') from error
  except (RuntimeError, OSError) as error:
    if all(value is None for value in named) and 'before any JAX' in str(error):
      return  # called from a program that has used its devices: one process
    raise UserError(f'the processes of the run cannot start: {first_line(error)}') from error
  finally:
    alarm.cancel()
  _keep_output_clean()
  _STATE.settings = settings
  jax.devices()  # They tell each other about their devices, now that all are here.
  _STATE.hosts = tuple(_exchange('host', socket.gethostname()))
  if index():
    terminal.only_warnings(f'process {index()}: ')
  terminal.say(f'{count()} processes, {jax.device_count()} devices')
  _STATE.watch = threading.Thread(target=_watch, name='peers', daemon=True)
  _STATE.watch.start()


def _not_all_there(settings: Settings) -> NoReturn:
  terminal.close()
  text = f'error: the processes of the run did not find each other in {settings.start_timeout} s'
  place = settings.coordinator or 'the host that the cluster names'
  print(f'{text} (--start-timeout): process 0 listens at {place}', file=sys.stderr, flush=True)
  os._exit(LOST)


def _keep_output_clean() -> None:
  """Sends what libraries print from C++ (Gloo does) to standard error: results stay alone."""
  sys.stdout.flush()
  kept = os.dup(1)
  os.dup2(2, 1)
  sys.stdout = os.fdopen(kept, 'w')


def _is_started() -> bool:
  if 'jax' not in sys.modules:
    return False
  import jax

  return jax.distributed.is_initialized()


def count() -> int:
  """Processes of the run. Without `start` it touches no device."""
  if not _is_started():
    return 1
  import jax

  return jax.process_count()


def index() -> int:
  """Number of this process."""
  if not _is_started():
    return 0
  import jax

  return jax.process_index()


def is_first() -> bool:
  """Whether this is the process that writes logs, configs and results."""
  return index() == 0


# Waiting for each other. These go through the coordination service and not through the devices,
# whose collectives have time limits of their own.


def _client() -> Any:
  """The key-value store and barriers of the service; JAX has no public name for them."""
  from jax._src import distributed

  return distributed.global_state.client


def barrier() -> None:
  """Returns when every process has called it."""
  if count() == 1:
    return
  _STATE.meetings += 1
  _wait_at_barrier(f'{_PREFIX}/barrier/{_STATE.meetings}')


def _wait_at_barrier(name: str, seconds: float | None = None) -> None:
  seconds = seconds or _STATE.settings.prepare_timeout
  _client().wait_at_barrier(name, int(seconds * 1000))


def by_first(action: Callable[[], None]) -> None:
  """Process 0 does something to shared files; all go on when it is done."""
  if is_first():
    action()
  barrier()


def all_agree(yes: bool) -> bool:
  """Whether it is so in every process."""
  if count() == 1:
    return yes
  _STATE.meetings += 1
  return all(value == '1' for value in _exchange(f'agree/{_STATE.meetings}', str(int(yes))))


def gather(text: str) -> list[str]:
  """What each process has to say, in their order; every process gets all of it."""
  if count() == 1:
    return [text]
  _STATE.meetings += 1
  return _exchange(f'gather/{_STATE.meetings}', text)


def _exchange(name: str, text: str) -> list[str]:
  client, key = _client(), f'{_PREFIX}/{name}'
  client.key_value_set(f'{key}/{index()}', text)
  found = [_get(f'{key}/{number}', f'process {number}') for number in range(count())]
  if name.startswith('gather'):  # may be large
    _wait_at_barrier(f'{key}/read')
    client.key_value_delete(f'{key}/{index()}')
  return found


def _get(key: str, what: str) -> str:
  """A value of the store, when it is there; UserError after --prepare-timeout."""
  limit = _STATE.settings.prepare_timeout
  end = time.monotonic() + limit
  while True:
    try:
      return _client().blocking_key_value_get(key, _SLICE_MS)
    except RuntimeError as error:
      if 'DEADLINE_EXCEEDED' not in str(error):
        raise
    if time.monotonic() > end:
      raise UserError(f'waited {limit} s for {what} (--prepare-timeout)')


def prepare(is_there: Callable[[], bool], make: Callable[[], None], what: str) -> None:
  """Has `make` called by one process of each file system, and returns when all have the result.

  Process 0 goes first. What it has made is there for all who share its disk; of those who do not,
  the first process of each host makes its own.

  Args:
    is_there: whether this process can read what is wanted.
    make: makes it. May take hours; the others say that they wait.
    what: a few words for messages.
  """
  if count() == 1:
    if not is_there():
      make()
    return
  _STATE.meetings += 1
  key = f'{_PREFIX}/prepared/{_STATE.meetings}'
  mine = index()
  leader = _STATE.hosts.index(_STATE.hosts[mine])
  for turn in dict.fromkeys((0, leader, mine)):
    if turn != mine:
      _wait_for(turn, key, what)
    if is_there():
      break
    if turn == mine:
      make()
  _client().key_value_set(f'{key}/{mine}', '')
  for number in range(count()):
    _wait_for(number, key, what)


def _wait_for(number: int, key: str, what: str) -> None:
  """Says that it waits only where it does."""
  client, name = _client(), f'{key}/{number}'
  try:
    client.blocking_key_value_get(name, _SLICE_MS)
  except RuntimeError as error:
    if 'DEADLINE_EXCEEDED' not in str(error):
      raise
    limit = terminal.duration(_STATE.settings.prepare_timeout)
    terminal.say(f'waiting for process {number} to {what}, {limit} at most', always=True)
    _get(name, f'process {number} to {what}')


# The end.


def _watch() -> None:
  """In a thread: ends this process when another one says that it has failed."""
  key = f'{_PREFIX}/failed'
  while True:
    try:
      value = json.loads(_client().blocking_key_value_get(key, 3_600_000))
      break
    except RuntimeError as error:
      if 'DEADLINE_EXCEEDED' not in str(error):
        return
    except AttributeError:  # no client any more
      return
  if value['process'] is None:
    return  # Nobody has: all are at the end.
  if value['process'] != index():
    terminal.close()
    text = f'error: process {value["process"]} of {count()} failed: {value["text"]}'
    print(text, file=sys.stderr, flush=True)
    _end(value['status'])


def fail(text: str, status: int) -> NoReturn:
  """Ends this process of several at once, and tells the others why.

  An ordinary exit would wait for the others, which wait for this one.
  """
  value = {'process': index(), 'text': text, 'status': status}
  with contextlib.suppress(Exception):  # Another one was first, or there is no one to tell.
    _client().key_value_set(f'{_PREFIX}/failed', json.dumps(value))
  _end(status)


def _end(status: int) -> NoReturn:
  sys.stdout.flush()
  sys.stderr.flush()
  if is_first():
    time.sleep(_GRACE_SECONDS)
  os._exit(status)


def leave() -> None:
  """Ends the connection when all have come here; an error tells that one has not."""
  if count() == 1:
    return
  import jax

  _wait_at_barrier(f'{_PREFIX}/leave', _STATE.settings.shutdown_timeout)
  if is_first():
    _client().key_value_set(f'{_PREFIX}/failed', json.dumps({'process': None}))
  if _STATE.watch is not None:
    _STATE.watch.join()  # A thread that waits in C++ when Python ends would abort the process.
  jax.distributed.shutdown()


def lost_another(error: BaseException) -> str:
  """What to tell the user, if an error means that another process is gone; else ''."""
  text = first_line(error)
  if count() == 1 or not any(word in str(error).lower() for word in _CONNECTION):
    return ''
  return (
    f'process {index()} of {count()} lost another one ({text}); see what that one says, and start '
    'all of them again: the run goes on from its last checkpoint'
  )
