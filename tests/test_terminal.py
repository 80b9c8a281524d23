"""What is said in a log, and when."""

import sys
import time

import pytest

from flaxlm import terminal


@pytest.fixture
def screen(monkeypatch):
  """A fresh screen, and a clock that the test moves."""
  made = terminal._Screen()
  made._heart = object()  # No thread: the test calls what it would.
  clock = [terminal._START]
  monkeypatch.setattr(terminal, '_SCREEN', made)
  monkeypatch.setattr(time, 'monotonic', lambda: clock[0])
  made.wait = lambda seconds: clock.__setitem__(0, clock[0] + seconds)
  return made


def lines(capsys):
  return [' '.join(line.split()) for line in capsys.readouterr().err.splitlines()]


def test_a_phase_is_said_at_once(screen, capsys):
  terminal.phase('data', 'embedded')
  screen.wait(65)
  terminal.phase('compile')
  assert lines(capsys) == ['0s data embedded', '1m05s compile']
  with pytest.raises(ValueError, match='nap'):
    terminal.phase('nap')


def test_first_and_last_step_are_shown_and_others_now_and_then(screen, capsys):
  terminal.phase('train')
  for step in range(1, 2001):
    screen.wait(0.1)
    terminal.step(step, 2000, 2.5, 41234.0, 0.1 * (2000 - step))
  shown = lines(capsys)[1:]
  assert 'step 1/2000 loss 2.5000 41.2k tokens/s 3m20s left' in shown[0]
  assert 'step 2000/2000' in shown[-1]
  # 200 seconds: at most one line in five seconds.
  assert 20 < len(shown) <= 42


def test_a_bar_shows_time_left_and_closes_with_a_summary(screen, capsys):
  terminal.phase('data')
  with terminal.bar('tokenise', 100, 'documents') as bar:
    for _ in range(100):
      screen.wait(1)
      bar.advance()
  shown = lines(capsys)[1:]
  assert '5s data tokenise 5% 5/100 documents 1m35s left' in shown
  assert shown[-1] == '1m40s data tokenise: 100 documents in 1m40s'
  assert len(shown) < 25


def test_a_long_silence_is_broken(capsys, monkeypatch):
  screen = terminal._Screen()
  monkeypatch.setattr(terminal, '_SCREEN', screen)
  monkeypatch.setattr(terminal, 'HEARTBEAT_SECONDS', 0.5)
  terminal.phase('compile', 'train step')
  time.sleep(2.5)
  beats = [line for line in lines(capsys) if 'train step (working for' in line]
  assert 1 <= len(beats) <= 3


def test_text_is_not_taken_for_markup(screen, capsys):
  terminal.warn('layers [bold]/0[/]: 3 [x]')
  assert lines(capsys) == ['0s warning: layers [bold]/0[/]: 3 [x]']


def test_units():
  assert [terminal.duration(s) for s in (0, 59.4, 61, 3600, 7260)] == [
    '0s', '59s', '1m01s', '1h00m', '2h01m'
  ]  # fmt: skip
  assert [terminal.count(n) for n in (0, 999, 41234, 1.3e6, 2e9)] == [
    '0', '999', '41.2k', '1.3M', '2G'
  ]  # fmt: skip


def test_nothing_goes_to_standard_output(screen, capsys):
  terminal.phase('data')
  terminal.say('a')
  assert capsys.readouterr().out == ''
  assert 'rich' not in sys.modules or screen._live is None


def test_what_is_cut_is_said_once_for_all(screen, capsys):
  terminal.cut(0, 5, 'texts are long')
  terminal.cut(2, 5, 'texts are long')
  with terminal.cuts():
    for _ in range(3):
      terminal.cut(2, 5, 'texts are long')
    with terminal.cuts(said=False):
      terminal.cut(1, 5, 'texts are long')
  shown = [line.partition('warning: ')[2] for line in lines(capsys)]
  assert shown == [f'{n} texts are long, and are cut' for n in ('2 of 5', '6 of 15')]
