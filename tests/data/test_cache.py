"""The cache: whole or absent, whoever else writes there; damage is named."""

import hashlib
import os

import pytest
from etils import epath

from flaxlm import files
from flaxlm.config.data import DataConfig
from flaxlm.data import cache
from flaxlm.errors import UserError


def test_what_another_process_made_meanwhile_stays(tmp_path):
  target = epath.Path(tmp_path / 'made')
  with cache.staged(target) as mine:
    (mine / 'file').write_text('mine')
    with cache.staged(target) as theirs:
      (theirs / 'file').write_text('theirs')
  assert (target / 'file').read_text() == 'theirs'
  assert [path.name for path in tmp_path.iterdir()] == ['made']


def test_it_stays_too_if_it_appears_at_the_last_moment(tmp_path, monkeypatch):
  target = epath.Path(tmp_path / 'made')
  kind = type(target)
  rename = kind.rename

  def late(self, to):
    if not target.exists():
      target.mkdir()
      (target / 'file').write_text('theirs')
    return rename(self, to)

  monkeypatch.setattr(kind, 'rename', late)
  with cache.staged(target) as mine:
    (mine / 'file').write_text('mine')
  assert (target / 'file').read_text() == 'theirs'


def test_two_processes_may_write_the_same_file(tmp_path, monkeypatch):
  path = epath.Path(tmp_path / 'file')
  kind = type(path)
  replace = kind.replace

  def late(self, to):
    monkeypatch.setattr(kind, 'replace', replace)
    files.write_text(path, 'text')
    return replace(self, to)

  monkeypatch.setattr(kind, 'replace', late)
  files.write_text(path, 'text')
  assert path.read_text() == 'text'
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_damage_is_named(tmp_path):
  message = f'{tmp_path}: damaged .no number.; delete it'
  with pytest.raises(UserError, match=message), cache.intact(tmp_path):
    raise ValueError('no number\nat all')


def test_a_big_file_is_read_once_and_again_after_a_change(tmp_path, monkeypatch):
  monkeypatch.setattr(cache, 'BIG', 1)
  config = DataConfig(cache_dir=str(tmp_path / 'cache'))
  path = epath.Path(tmp_path / 'a.txt')
  path.write_text('first')
  before = cache.digest(config, path)
  (kept,) = (tmp_path / 'cache' / 'digests').iterdir()
  kept.write_text('kept')
  assert cache.digest(config, path) == [*before[:2], 'kept']
  path.write_text('other')  # As long.
  os.utime(path, (1e9, 1e9))
  assert cache.digest(config, path)[2] == hashlib.sha256(b'other').hexdigest() != before[2]
