"""A folder or file that a process works in: others are kept out for as long as it lives."""

import pathlib
import subprocess
import sys

import pytest

from flaxlm import files
from flaxlm.commands import _folder
from flaxlm.config import tree
from flaxlm.errors import UserError
from flaxlm.training import loop

HOLD = """
import sys
sys.path.insert(0, {root!r})
from flaxlm import files

with files.held('run'):
  print('held', flush=True)
  sys.stdin.read()
"""


def test_a_folder_is_held_until_its_process_is_gone(tmp_path):
  root = str(pathlib.Path(__file__).parent.parent)
  other = subprocess.Popen(
    [sys.executable, '-c', HOLD.format(root=root)], cwd=tmp_path, text=True,
    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
  )  # fmt: skip
  with other:
    assert other.stdout.readline() == 'held\n'
    message = f'run: process {other.pid} on .* is at work there'
    with pytest.raises(UserError, match=message), files.held(tmp_path / 'run'):
      raise AssertionError('two processes in one folder')
    other.kill()
  for _ in range(2):
    with files.held(tmp_path / 'run'):
      pass


def test_two_do_not_train_in_one_workdir(tmp_path):
  config = tree.new(model='decoder', objective='causal_lm')
  with files.held(tmp_path), pytest.raises(UserError, match='is at work there'):
    loop.train(config, str(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ['.lock']


def test_a_folder_with_nothing_but_a_lock_is_a_new_one(tmp_path):
  target = tmp_path / 'run'
  with files.held(target):
    taken = _folder.staged(_folder.new('--workdir', str(target)))
    with pytest.raises(UserError, match='is at work there'), taken:
      raise AssertionError('a folder was taken from the process that is at work there')
  assert (target / files.LOCK).exists()
  with _folder.staged(_folder.new('--workdir', str(target))) as temporary:
    (temporary / 'config.json').write_text('{}')
  assert [path.name for path in target.iterdir()] == ['config.json']
  with pytest.raises(UserError, match='--workdir: .*run is there already'):
    _folder.new('--workdir', str(target))


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
  def refuse(file, how):
    raise OSError(37, 'No locks available')

  monkeypatch.setattr(files.fcntl, 'flock', refuse)
  with files.held(tmp_path), files.held(tmp_path):
    pass
