"""metrics.jsonl survives kills; writers of the user's are found; files are whole or absent."""

import errno
import json

import linear_experiment as linear
import pytest

from flaxlm import files
from flaxlm.errors import UserError
from flaxlm.training import writers


class Recorder:
  """A user's writer."""

  calls = []

  def __init__(self, workdir, config):
    self.calls.append(('open', workdir, config.seed))

  def write(self, step, split, values):
    self.calls.append((step, split, dict(values)))

  def close(self):
    self.calls.append('close')


def test_lines_are_on_disk_at_once_and_nan_is_null(tmp_path):
  writer = writers.JsonlWriter(tmp_path)
  writer.write(1, 'train', {'loss': 0.1})
  writer.write(2, 'train', {'loss': float('nan')})
  text = (tmp_path / 'metrics.jsonl').read_text()
  assert [json.loads(line) for line in text.splitlines()] == [
    {'step': 1, 'split': 'train', 'loss': 0.1},
    {'step': 2, 'split': 'train', 'loss': None},
  ]
  writer.close()


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
  class Full:
    def write(self, line):
      raise OSError(errno.ENOSPC, 'No space left on device')

    close = lambda self: self.write('')

  writer = writers.JsonlWriter(tmp_path)
  monkeypatch.setattr(writer, '_file', Full())
  for act in (lambda: writer.write(1, 'train', {'loss': 0.1}), writer.close):
    with pytest.raises(UserError, match='metrics.jsonl: cannot be written: No space left'):
      act()


def test_a_later_start_appends_and_drops_what_is_beyond(tmp_path):
  for first in (1, 3):
    writer = writers.JsonlWriter(tmp_path)
    for step in (first, first + 1):
      writer.write(step, 'train', {'loss': float(step)})
    writer.close()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 2, "lo')
  writers.drop_after(tmp_path, 3)
  assert [line['step'] for line in writers.read_metrics(tmp_path)] == [1, 2, 3]
  assert (tmp_path / 'metrics.jsonl').read_text().endswith('}\n')


def test_a_strict_reader_names_a_malformed_line(tmp_path):
  """In a file's last line it is a line that is being written."""
  file = tmp_path / 'metrics.jsonl'
  good = '{"step": 1}\n'
  for text, steps in ((good + good + '{"st', 2), (good + '{"st\n' + good, 2), ('\n' + good, 1)):
    file.write_text(text)
    assert len(writers.read_metrics(tmp_path)) == steps
  assert len(writers.read_metrics(tmp_path, strict=True)) == 1  # a blank line is no malformed one
  file.write_text(good + good + '{"st')
  assert len(writers.read_metrics(tmp_path, strict=True)) == 2
  file.write_text(good + '{"st\n' + good)
  with pytest.raises(UserError, match='metrics.jsonl:2: malformed JSON: Unterminated string'):
    writers.read_metrics(tmp_path, strict=True)


def test_one_part_a_start_where_files_cannot_grow(tmp_path, monkeypatch):
  monkeypatch.setattr(files, 'is_object_store', lambda path: True)
  for first in (1, 3):
    writer = writers.JsonlWriter(tmp_path)
    writer.write(first, 'train', {'loss': 1.0})
    writer.write(first + 1, 'validation', {'loss': 1.0})
    assert len(writers.read_metrics(tmp_path)) == first + 1  # visible before the end
    writer.close()
  assert len(list(tmp_path.iterdir())) == 2
  writers.drop_after(tmp_path, 3)
  assert [line['step'] for line in writers.read_metrics(tmp_path)] == [1, 2, 3]


def test_tensorboard_events_are_written(tmp_path):
  config = linear.make_config(logging__tensorboard=True)
  both = writers.Writers(tmp_path, config)
  both.write(1, 'train', {'loss': 2.5})
  both.close()
  (events,) = (tmp_path / 'tensorboard').iterdir()
  assert b'train/loss' in events.read_bytes()


def test_a_writer_of_the_users(tmp_path):
  name = f'{Recorder.__module__}.Recorder'
  config = linear.make_config(logging__writers=(name,), seed=3)
  Recorder.calls.clear()
  all_writers = writers.Writers(tmp_path, config)
  all_writers.write(1, 'train', {'loss': 2.0})
  all_writers.close()
  assert Recorder.calls == [('open', str(tmp_path), 3), (1, 'train', {'loss': 2.0}), 'close']


@pytest.mark.parametrize('name', ['Recorder', 'no_such_module.Recorder', 'json.Recorder'])
def test_a_writer_that_cannot_be_found_is_named(tmp_path, name):
  with pytest.raises(UserError, match=f"config.logging.writers: '{name}'"):
    writers.Writers(tmp_path, linear.make_config(logging__writers=(name,)))


def test_files_are_whole_or_absent(tmp_path):
  writers.write_json(tmp_path / 'a' / 'b.json', {'x': 1})
  with pytest.raises(TypeError):
    writers.write_json(tmp_path / 'a' / 'b.json', {'x': object()})
  assert json.loads((tmp_path / 'a' / 'b.json').read_text()) == {'x': 1}
  assert [path.name for path in (tmp_path / 'a').iterdir()] == ['b.json']
