"""Flags, exit status and one-line errors, as a user of the commands meets them."""

import errno
import subprocess
import sys

import pytest

from flaxlm import commandline
from flaxlm.errors import UserError


def parser():
  made = commandline.Parser('A test.', overrides=True)
  made.add_argument('--workdir', required=True)
  made.add_argument('--count', type=int, default=3)
  made.add_argument('--top-k', type=int)
  return made


def test_overrides_are_taken_in_both_spellings():
  args = parser().parse(
    ['--config.a.b=1', '--workdir', 'w', '--config.c', '-2,3', '--config.d=x=y', '--count=5']
  )
  assert args.overrides == [('a.b', '1'), ('c', '-2,3'), ('d', 'x=y')]
  assert (args.workdir, args.count) == ('w', 5)


def test_flags_have_hyphens_or_underscores_and_values_stay():
  for flag in ('--top-k', '--top_k'):
    args = parser().parse([f'{flag}=2', '--workdir=a_b-c', '--config.a_b=c_d'])
    assert (args.top_k, args.workdir, args.overrides) == (2, 'a_b-c', [('a_b', 'c_d')])
    assert parser().parse([flag, '2', '--workdir', '_']).top_k == 2
  with pytest.raises(UserError, match=r"unknown flag '--top_n' \(did you mean '--top-k'\?\)"):
    parser().parse(['--workdir=a', '--top_n=2'])


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ([], 'missing --workdir'),
    (['--wrkdir=a'], "unknown flag '--wrkdir' (did you mean '--workdir'?)"),
    (['--work=a'], "unknown flag '--work' (did you mean '--workdir'?)"),
    (['--confg.seed=1'], "unknown flag '--confg.seed' (did you mean '--config.FIELD'?)"),
    (['--workdir=a', 'b'], "unexpected argument 'b'"),
    (['--workdir=a', '--count=b'], "argument --count: invalid int value: 'b'"),
    (['--workdir=a', '--config.seed'], 'config.seed: needs a value'),
    (['--workdir=a', '--config.seed', '--debug'], 'config.seed: needs a value'),
  ],
)
def test_a_wrong_flag_is_a_user_error(argv, message):
  with pytest.raises(UserError) as error:
    parser().parse(argv)
  assert str(error.value).startswith(message)


def fail(error):
  def main(argv):
    raise error

  return main


def test_an_argument_of_bytes_that_are_no_text_is_a_user_error():
  parser = commandline.Parser('help', overrides=True)
  parser.add_argument('--text')
  for word in ('--text=a \udcff', '--config.task.labels=\ud800'):
    with pytest.raises(UserError, match=r'not UTF-8: the argument .*\\ud') as error:
      parser.parse([word])
    assert str(error.value).isascii()


def test_errors_of_the_user_end_in_one_line_and_status_1(capsys):
  assert commandline.run(fail(UserError('config.a: is\n wrong')), []) == 1
  assert capsys.readouterr().err == 'error: config.a: is wrong\n'
  assert commandline.run(fail(FileNotFoundError(2, 'No such file', 'a.txt')), []) == 1
  assert capsys.readouterr().err == 'error: a.txt: No such file\n'
  assert commandline.run(lambda argv: None, []) == 0


def test_debug_shows_the_traceback(capsys):
  assert commandline.run(fail(UserError('wrong')), ['--debug']) == 1
  text = capsys.readouterr().err
  assert 'Traceback' in text and text.endswith('error: wrong\n')


def test_faults_of_the_program_keep_their_traceback():
  with pytest.raises(ZeroDivisionError):
    commandline.run(fail(ZeroDivisionError()), [])
  with pytest.raises(OSError):
    commandline.run(fail(OSError('device gone')), [])


def test_a_full_disk_is_no_fault_of_the_program(capsys):
  assert commandline.run(fail(OSError(errno.ENOSPC, 'No space left on device')), []) == 1
  assert capsys.readouterr().err.startswith('error: No space left on device')


def test_a_reader_that_has_seen_enough_is_no_fault(capsys):
  assert commandline.run(fail(BrokenPipeError(errno.EPIPE, 'Broken pipe')), []) == 141
  assert capsys.readouterr().err == 'the reader of the output is gone\n'


def test_an_interrupt_is_no_success(capsys):
  assert commandline.run(fail(KeyboardInterrupt()), []) == 130
  assert capsys.readouterr().err == 'interrupted\n'


def command(root, *argv):
  return subprocess.run(
    [sys.executable, *argv], cwd=root, capture_output=True, text=True, timeout=120
  )


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--config=configs/gpt2.py:medium'], "configs/gpt2.py has no variant 'medium'"),
    (['--config=configs/gpt9.py'], "no config file 'configs/gpt9.py'"),
    (['--config=configs/gpt2.py:mini', '--config.model.num_layer=2'], "'config.model.num_layers'"),
    (['--config=configs/gpt2.py:mini', '--seed=2'], "unknown flag '--seed'"),
  ],
)
def test_train_ends_in_one_line(root, tmp_path, argv, message):
  done = command(root, 'train.py', f'--workdir={tmp_path}/w', *argv)
  assert done.returncode == 1
  errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
  assert len(errors) == 1 and message in errors[0]
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'w').exists()


def test_eval_of_a_folder_that_is_no_run_ends_in_one_line(root, tmp_path):
  done = command(root, 'eval.py', f'--workdir={tmp_path}')
  assert (done.returncode, done.stdout) == (1, '')
  assert done.stderr.splitlines()[-1].startswith('error: ') and str(tmp_path) in done.stderr
  assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('script', ['train.py', 'eval.py'])
def test_the_first_line_needs_nothing_heavy(root, script):
  """The phase line is out before jax, flax or numpy are imported."""
  code = f"""
import sys, runpy
from flaxlm import terminal
def phase(name, detail):
  heavy = [m for m in ('jax', 'flax', 'numpy', 'ml_collections') if m in sys.modules]
  print('imported:', heavy)
  raise KeyboardInterrupt
terminal.phase = phase
sys.argv = ['{script}', '--workdir=w'] + (['--config=c'] if '{script}' == 'train.py' else [])
runpy.run_path('{script}', run_name='__main__')
"""
  assert command(root, '-c', code).stdout == 'imported: []\n'


def test_help_lists_every_command_with_its_first_line(root):
  done = command(root, '-m', 'flaxlm', '--help')
  assert done.returncode == 0
  for file in (root / 'flaxlm' / 'commands').glob('[!_]*.py'):
    line = file.read_text().split('"""')[1].split('\n')[0]
    assert f'{file.stem.replace("_", "-")} ' in done.stdout and line in done.stdout, file


def test_an_unknown_command_names_the_nearest(root):
  done = command(root, '-m', 'flaxlm', 'plto')
  assert done.returncode == 1
  assert done.stderr == "error: there is no command 'plto' (did you mean 'plot'?)\n"


@pytest.mark.parametrize('script', [['train.py'], ['eval.py'], ['-m', 'flaxlm', 'plot']])
def test_help_of_each(root, script):
  done = command(root, *script, '--help')
  assert done.returncode == 0
  assert '--workdir' in done.stdout and done.stderr == ''
