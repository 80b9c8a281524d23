"""Where metrics and small files go: metrics.jsonl, TensorBoard, and writers of the user's."""

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from flaxlm import distributed, files
from flaxlm.config.schema import Config
from flaxlm.errors import UserError, nearest

_PARTS = 'metrics*.jsonl'


class MetricWriter(Protocol):
  """Receives every line of metrics.

  A user's own class is named in `config.logging.writers`, and is called with (workdir, config).
  """

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Values at a step (updates done) of `train` or of a validation set."""
    ...

  def close(self) -> None:
    """Called at the end, also after an error."""
    ...


def write_json(path: epath.PathLike, value: Any) -> None:
  """Writes a JSON file as a whole or not at all."""
  files.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
  """Metrics as JSON has them: it knows no NaN and no infinity, and has null for them."""
  return {key: value if math.isfinite(value) else None for key, value in metrics.items()}


def _parse(path: epath.Path, text: str, strict: bool = False) -> list[dict[str, Any]]:
  """The metric lines of the text of a file, without malformed ones.

  With `strict`, one is a UserError, unless it is the last, which is being written or was cut short
  by a kill.
  """
  lines = []
  texts = text.split('\n')
  for number, line in enumerate(texts, start=1):
    try:
      value = json.loads(line)
    except json.JSONDecodeError as error:
      if strict and line and number < len(texts):
        raise UserError(f'{path}:{number}: malformed JSON: {error.msg}') from error
      continue
    if isinstance(value, dict) and 'step' in value:
      lines.append(value)
  return lines


def metrics_files(workdir: epath.PathLike) -> list[epath.Path]:
  """metrics.jsonl or, where files cannot grow, its parts, in the order of their starts."""
  return sorted(epath.Path(workdir).glob(_PARTS), key=lambda path: path.name)


def read_metrics(workdir: epath.PathLike, strict: bool = False) -> list[dict[str, Any]]:
  """All metric lines of a run, in the order in which they were written.

  Malformed ones are left out or, with `strict`, a UserError, but for a file's last.
  """
  paths = metrics_files(workdir)
  return [line for path in paths for line in _parse(path, path.read_text(), strict)]


def drop_after(workdir: epath.PathLike, step: int) -> None:
  """Removes metric lines beyond `step`, and torn ones, before a run goes on from there."""
  for path in metrics_files(workdir):
    text = path.read_text()
    kept = ''.join(_line(line) for line in _parse(path, text) if line['step'] <= step)
    if kept != text:
      files.write_text(path, kept)


def _line(values: Mapping[str, Any]) -> str:
  return json.dumps(values) + '\n'


class JsonlWriter:
  """WORKDIR/metrics.jsonl, a line at a time; one part file a start where files cannot grow."""

  def __init__(self, workdir: epath.PathLike, config: Config | None = None):
    del config
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    self._file = None
    if not files.is_object_store(workdir):
      self._path = workdir / 'metrics.jsonl'
      self._file = self._path.open('a')
    else:
      self._path = workdir / f'metrics-{len(list(workdir.glob(_PARTS))):05d}.jsonl'
      self._lines: list[str] = []

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    line = _line({'step': step, 'split': split, **finite(values)})
    if self._file is not None:
      with files.storing(self._path):
        self._file.write(line)
        self._file.flush()
      return
    self._lines.append(line)
    if split != 'train':
      self._save()

  def flush(self) -> None:
    """Makes the lines so far visible; called before each checkpoint."""
    if self._file is None:
      self._save()

  def _save(self) -> None:
    self._path.write_text(''.join(self._lines))

  def close(self) -> None:
    self.flush()
    if self._file is not None:
      with files.storing(self._path):
        self._file.close()


class TensorBoardWriter:
  """Event files in WORKDIR/tensorboard, without TensorFlow; tags are SPLIT/METRIC."""

  def __init__(self, workdir: epath.PathLike, config: Config | None = None, first_step: int = 0):
    """`first_step`: events from there on, of an earlier start, are hidden by the viewer."""
    from tensorboardX import SummaryWriter

    del config
    self._folder = files.LocalFolder(epath.Path(workdir) / 'tensorboard')
    self._writer = SummaryWriter(self._folder.path, purge_step=first_step or None, flush_secs=30)

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    for key, value in values.items():
      self._writer.add_scalar(f'{split}/{key}', value, step)
    if split != 'train':
      self._writer.flush()
      self._folder.publish()

  def close(self) -> None:
    self._writer.close()
    self._folder.publish()


class Writers:
  """All writers of a run as one. Of several processes the first writes."""

  def __init__(self, workdir: epath.PathLike, config: Config, first_step: int = 0):
    """Opens metrics.jsonl and what `config.logging` asks for. `first_step`: the next one."""
    self._jsonl: JsonlWriter | None = None
    self._all: Sequence[MetricWriter] = []
    if not distributed.is_first():
      return
    others: list[MetricWriter] = []
    for name in config.logging.writers:
      others.append(_user_class(name)(str(workdir), config))
    if config.logging.tensorboard:
      others.append(TensorBoardWriter(workdir, config, first_step))
    self._jsonl = JsonlWriter(workdir)
    self._all = [self._jsonl, *others]

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    for writer in self._all:
      writer.write(step, split, values)

  def flush(self) -> None:
    if self._jsonl is not None:
      self._jsonl.flush()

  def close(self) -> None:
    for writer in self._all:
      writer.close()


def _user_class(name: str) -> type:
  """The class under a dotted name of `config.logging.writers`."""
  module, _, attribute = name.rpartition('.')
  if not module:
    raise UserError(f'config.logging.writers: {name!r} is not a dotted name, MODULE.CLASS')
  try:
    found = importlib.import_module(module)
  except ImportError as error:
    raise UserError(f'config.logging.writers: {name!r} cannot be imported: {error}') from None
  if not hasattr(found, attribute):
    classes = [other for other, value in vars(found).items() if isinstance(value, type)]
    raise UserError(
      f'config.logging.writers: {name!r}: {module} has no {attribute}{nearest(attribute, classes)}'
    )
  return getattr(found, attribute)
