"""Signals as a process sees them: status, second Ctrl-C, and a main thread that runs no Python."""

import signal
import time

import processes
import pytest

SCRIPT = """
import gc, hashlib, sys, threading, time
from flaxlm.training import interrupt
main_thread = threading.current_thread()
interrupt.PATIENCE_SECONDS = 1.5 if 'slow' in sys.argv else 0.3
with interrupt.Interrupts() as interrupts:
  if 'training' in sys.argv:
    interrupts.begin_training(*(float(word[6:]) for word in sys.argv if word.startswith('grace=')))
  if 'rescue' in sys.argv:
    interrupts.rescue = lambda: f' at step 7, by {threading.current_thread() is not main_thread}'
  print('ready', flush=True)
  if 'collecting' in sys.argv:
    # What is raised here is not raised: as where a library tidies up.
    gc.callbacks.append(lambda *_: time.sleep(0.5))
    gc.collect()
    gc.callbacks.clear()
  if 'native' in sys.argv:
    # Releases the interpreter's lock and returns to no Python code, as a compilation does.
    hashlib.pbkdf2_hmac('sha256', b'x', b'x', 10**9)
  while 'poll' not in sys.argv or interrupts.signum is None:
    time.sleep(0.01)
  interrupts.answer()
  while 'slow' in sys.argv:
    time.sleep(0.01)
  raise interrupt.Interrupted(interrupts.signum)
"""


@pytest.fixture
def start():
  """Starts the script; what is left of it is killed."""
  begun = []

  def run(*words):
    process = processes.start('-c', SCRIPT, *words)
    begun.append(process)
    assert process.stdout.readline() == 'ready\n'
    return process

  yield run
  for process in begun:
    process.kill()
    process.communicate()


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('words', [(), ('native',), ('collecting',)])
def test_before_training_there_is_nothing_to_save(start, signum, words):
  process = start(*words)
  process.send_signal(signum)
  _, errors = processes.finish(process, 128 + signum)
  assert f'stopped by {signal.Signals(signum).name}: nothing to save' in errors


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_while_training_the_loop_decides(start, signum):
  process = start('training', 'poll')
  process.send_signal(signum)
  _, errors = processes.finish(process, 128 + signum)
  assert 'saving after this step' in errors and 'nothing to save' not in errors


@pytest.mark.parametrize('words', [('training',), ('training', 'native')])
def test_a_second_ctrl_c_ends_at_once(start, words):
  process = start(*words)
  process.send_signal(signal.SIGINT)
  time.sleep(0.5)
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  _, errors = processes.finish(process, 130)
  assert 'ended at once' in errors


def test_a_repeated_sigterm_does_not_hurt_the_save(start):
  process = start('training')
  for _ in range(3):
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
  assert process.poll() is None


@pytest.mark.parametrize('words', [('native',), ('poll', 'slow')])
def test_the_process_ends_when_the_time_after_sigterm_is_over(start, words):
  """Whether the main thread is deep in a compilation or in a save."""
  process = start('training', 'grace=1.5', *words)
  process.send_signal(signal.SIGTERM)
  _, errors = processes.finish(process, 143)
  assert 'ended 1.5 s after SIGTERM (config.checkpoint.grace_seconds) without a save' in errors


def test_ctrl_c_is_patient(start):
  process = start('training', 'grace=0.2', 'poll', 'slow')
  process.send_signal(signal.SIGINT)
  time.sleep(1)
  assert process.poll() is None


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_a_thread_saves_for_a_main_thread_that_does_not_come_back(start, signum):
  process = start('training', 'native', 'rescue')
  process.send_signal(signum)
  _, errors = processes.finish(process, 128 + signum)
  assert f'stopped by {signal.Signals(signum).name} at step 7, by True' in errors


def test_it_does_not_where_the_main_thread_has_answered(start):
  process = start('training', 'grace=2.5', 'rescue', 'poll', 'slow')
  process.send_signal(signal.SIGTERM)
  _, errors = processes.finish(process, 143)
  assert 'at step 7' not in errors
