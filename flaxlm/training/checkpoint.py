"""Checkpoints on disk: the only file that knows the checkpoint library.

DIRECTORY/STEP/state holds the arrays, DIRECTORY/STEP/meta what describes them: resolved config,
tokenizer hash, labels, a digest of every leaf, and a hash of the description itself. A step becomes
visible by one rename, so a save that is cut short never is the latest; on an object store, which
cannot rename, it counts once the library's file of success is there.
"""

import contextlib
import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from flaxlm import distributed, files, terminal
from flaxlm.config import tree
from flaxlm.config.safety import CheckpointConfig
from flaxlm.errors import UserError, first_line
from flaxlm.paths import leaf_paths, nested
from flaxlm.training import best
from flaxlm.training.digest import digest

FORMAT = 1
AVERAGE = 'average'
_TEMPORARY = '.orbax-checkpoint-tmp'
_SUCCESS = 'commit_success.txt'
# In the folder of a step: metrics of an evaluation that was done after the save.
_LATER = 'evaluated.json'


class Damaged(Exception):
  """A checkpoint that is not what was written."""


def _meta_hash(meta: Mapping[str, Any]) -> str:
  text = json.dumps({k: v for k, v in meta.items() if k != 'hash'}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _absolute(path: epath.PathLike) -> epath.Path:
  """The library takes absolute paths only. Those of object stores, which have a scheme, are."""
  path = epath.Path(path)
  return path if files.is_object_store(path) else path.absolute()


def steps_in(directory: epath.PathLike) -> list[int]:
  """Steps that have a checkpoint, oldest first; none where the directory is absent."""
  found = [path for path in files.children(directory) if path.name.isdigit()]
  return sorted(int(path.name) for path in found if _is_complete(path))


def _is_complete(path: epath.Path) -> bool:
  return not files.is_object_store(path) or (path / _SUCCESS).exists()


def read_meta(directory: epath.PathLike, step: int) -> dict[str, Any]:
  """The description of a checkpoint.

  Raises:
    Damaged: if it is absent, not JSON, or not what was written.
    UserError: if a later version of the program wrote it.
  """
  path = epath.Path(directory) / str(step) / 'meta' / 'metadata'
  try:
    meta = json.loads(path.read_text())
    intact = meta['hash'] == _meta_hash(meta)
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise Damaged(f'its description cannot be read: {_reason(error)}') from error
  if not intact:
    raise Damaged('its description is not the one that was written')
  if meta['format'] > FORMAT:
    raise UserError(f'{path}: format {meta["format"]} is newer than this program reads ({FORMAT})')
  return meta


def _agreed(read: Callable[[], Any]) -> Any:
  """What `read` returns; where it raises Damaged in one process, Damaged in all."""
  found = reason = None
  try:
    found = read()
  except Damaged as error:
    reason = error
  if not distributed.all_agree(reason is None):
    raise reason or Damaged('it cannot be read: by another process')
  return found


def _ignore_what_goes_on() -> None:
  """Silences what the library leaves running when a part of it fails: nobody awaits it."""
  report = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    closed = str(unraisable.exc_value) == 'Event loop is closed'
    if not closed and not inspect.iscoroutine(unraisable.object):
      report(unraisable)

  sys.unraisablehook = hook


@contextlib.contextmanager
def _writing(directory: epath.PathLike) -> Iterator[None]:
  """As `files.storing`."""
  with files.storing(directory):
    try:
      yield
    except Exception:
      _ignore_what_goes_on()
      raise


def _verify(tree: Any, meta: Mapping[str, Any]) -> None:
  stored = meta['digest']
  for path, value in digest(tree).items():
    if stored.get(path) != value:
      raise Damaged(f'the digest of {path} differs from the one that was stored')


def _reason(error: BaseException) -> str:
  return f'{type(error).__name__}: {first_line(error)}'


def restore_tree(
  directory: epath.PathLike, step: int, abstract: Any, meta: Mapping[str, Any]
) -> Any:
  """Reads the leaves of `abstract` onto its shardings, and checks their digests.

  Args:
    directory: where the checkpoints are.
    step: which one.
    abstract: ShapeDtypeStructs with shardings: a whole TrainState, or nested dicts that hold a part
      of it from the root, such as {'params': ...}.
    meta: what `read_meta` returned.

  Raises:
    Damaged: if a leaf cannot be read, by any process, or its digest differs.
    UserError: if the checkpoint was written without it.
  """
  path = _absolute(directory) / str(step) / 'state'
  for leaf in leaf_paths(abstract):
    if leaf not in meta['digest']:
      raise UserError(
        f'{directory}/{step} has no {leaf}: it holds part of a run, such as the weights of an '
        'imported model; start from it in another workdir, by --config.init_from'
      )
  partial = isinstance(abstract, dict)
  if partial:
    handler, restore = (
      ocp.PyTreeCheckpointHandler(),
      functools.partial(
        ocp.args.PyTreeRestore,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
      ),
    )
  else:
    handler, restore = ocp.StandardCheckpointHandler(), ocp.args.StandardRestore

  def read() -> Any:
    # The handler itself: the library's Checkpointer would wait for a process that could not read.
    with contextlib.closing(handler):
      try:
        return handler.restore(path, args=restore(abstract))
      except Exception as error:  # the library raises whatever its backends raise
        _ignore_what_goes_on()
        raise Damaged(f'it cannot be read: {_reason(error)}') from error

  tree = _agreed(read)
  _verify(tree, meta)
  return tree


def stored_params(directory: epath.PathLike, step: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Path -> shape and dtype of the parameters in a checkpoint, without reading them."""
  path = _absolute(directory) / str(step) / 'state'

  def read() -> Any:
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
      try:
        return reader.metadata(path).item_metadata.tree['params']
      except Exception as error:  # as above
        raise Damaged(f'it cannot be read: {_reason(error)}') from error

  shapes = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  return leaf_paths(jax.tree.map(shapes, _agreed(read)))


def restore_params(
  directory: epath.PathLike,
  step: int,
  wanted: Mapping[str, jax.ShapeDtypeStruct],
  meta: Mapping[str, Any],
) -> dict[str, jax.Array]:
  """Path -> array of the parameters at the paths of `wanted`, in its dtypes and shardings."""
  tree = restore_tree(directory, step, {'params': nested(wanted)}, meta)
  return leaf_paths(tree['params'])


def newest(
  directory: epath.PathLike, read: Callable[[int, dict[str, Any]], Any]
) -> tuple[int, dict[str, Any], Any, list[int]] | None:
  """Applies `read` to the newest whole checkpoint, and says so where that is not the latest.

  All processes call it, and come to the same one, also where a file system shows them less than
  others.

  Args:
    directory: where the checkpoints are.
    read: (step, meta) -> anything; raises Damaged, in all processes, if the checkpoint is not
      whole.

  Returns:
    (step, meta, what `read` returned, damaged steps after it), or None without any checkpoint.

  Raises:
    UserError: if there are checkpoints and none is whole: starting afresh must be asked for.
  """
  damaged = []
  reason = ''
  seen = [json.loads(text) for text in distributed.gather(json.dumps(steps_in(directory)))]
  for step in sorted(set().union(*seen), reverse=True):
    try:
      meta = _agreed(lambda step=step: read_meta(directory, step))
      found = read(step, meta)
    except Damaged as error:
      reason = reason or str(error)
      damaged.append(step)
      terminal.warn(f'CHECKPOINT {step} IN {directory} IS DAMAGED ({error}); trying an older one')
      continue
    if damaged:
      terminal.warn(f'using checkpoint {step} instead of {damaged[0]}')
    return step, meta, found, damaged
  if damaged:
    raise UserError(
      f'{directory}: none of the checkpoints {sorted(damaged)} is whole (the latest: {reason}); '
      'name another workdir to start afresh'
    )
  return None


def find(directory: epath.PathLike, which: str | int) -> list[int]:
  """The steps that `latest`, `best`, a number or `average:N` (the newest N) stand for.

  Raises:
    UserError: if there are no such checkpoints; lists those there are.
  """
  steps = steps_in(directory)
  if not steps:
    raise UserError(f'{directory}: no checkpoint there')
  shown = ', '.join(str(step) for step in steps)
  if which == 'latest':
    return steps[-1:]
  if which == 'best':
    scores = _scores_in(directory, steps)
    if not scores:
      raise UserError(
        f'--checkpoint=best: no checkpoint in {directory} was evaluated; valid are latest, '
        f'{AVERAGE}:N, {shown}'
      )
    return [max(scores, key=lambda step: (scores[step], step))]
  if str(which).isdigit() and int(which) in steps:
    return [int(which)]
  kind, _, count = str(which).partition(':')
  if kind == AVERAGE and count.isdigit() and int(count):
    if int(count) > len(steps):
      raise UserError(
        f'--checkpoint={which}: there are {len(steps)}: {shown}; config.checkpoint.keep_last says '
        'how many a run keeps'
      )
    return steps[-int(count) :]
  raise UserError(f'--checkpoint={which}: valid are latest, best, {AVERAGE}:N, {shown}')


def best_or_latest(directory: epath.PathLike) -> str:
  """'best' if a checkpoint there has a score, so that there is a best one, else 'latest'."""
  return 'best' if _scores_in(directory, steps_in(directory)) else 'latest'


def _scores_in(
  directory: epath.PathLike, steps: list[int], config: CheckpointConfig | None = None
) -> dict[int, float]:
  """Step -> score, of the steps that have one; by the config of the newest if none is given."""
  metas = {}
  for step in steps:
    with contextlib.suppress(Damaged):
      metas[step] = read_meta(directory, step)
  if config is None and metas:
    saved = metas[max(metas)]['config'].get('checkpoint', {})
    config = tree.build_node(CheckpointConfig, saved, 'checkpoint.')
  scores = {step: best.score(config, _metrics(directory, step, metas[step])) for step in metas}
  return {step: score for step, score in scores.items() if score is not None}


def _metrics(directory: epath.PathLike, step: int, meta: Mapping[str, Any]) -> dict[str, float]:
  """Those of validation at the step of a checkpoint."""
  later = epath.Path(directory) / str(step) / _LATER
  if meta['metrics'] or not later.exists():
    return meta['metrics']
  return files.read_json(later)


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
  return {name: value for name, value in metrics.items() if np.isfinite(value)}


class _KeepBest:
  """The preservation rule for the best step; reads the scores at the time of each save."""

  def __init__(self, scores: dict[int, float]):
    self._scores = scores

  def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
    del context
    scored = [info.step for info in checkpoints if info.step in self._scores]
    kept = max(scored, key=lambda step: (self._scores[step], step)) if scored else None
    return [info.step == kept for info in checkpoints]


class Checkpoints:
  """Saves without holding up training, and keeps the newest, every so many, and the best."""

  def __init__(self, directory: epath.PathLike, config: CheckpointConfig):
    """Opens `directory` for writing; leftovers of saves that were cut short are removed.

    The caller must be the only writer. Steps after the one that training goes on from must have
    been set aside (`set_aside`) before.
    """
    self._directory = _absolute(directory)
    self._config = config
    self._directory.mkdir(parents=True, exist_ok=True)
    distributed.by_first(self._remove_leftovers)
    self._scores = _scores_in(self._directory, steps_in(self._directory), config)
    policies = ocp.checkpoint_managers
    rules = [policies.LatestN(config.keep_last), _KeepBest(self._scores)]
    if config.keep_every_steps:
      rules.append(policies.EveryNSteps(config.keep_every_steps))
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        lightweight_initialize=True, preservation_policy=policies.AnyPreservationPolicy(rules)
      ),
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'meta': ocp.JsonCheckpointHandler(),
      },
    )

  def _remove_leftovers(self) -> None:
    for path in list(files.children(self._directory)):
      if _TEMPORARY in path.name or not _is_complete(path):
        path.rmtree()

  def is_best(self, metrics: Mapping[str, float]) -> bool:
    """Whether `metrics` beat those of every checkpoint that is kept."""
    score = best.score(self._config, metrics)
    return score is not None and score > max(self._scores.values(), default=-np.inf)

  def saved(self, step: int) -> bool:
    """Whether this step was saved, or is being saved."""
    return step in self._manager.all_steps()

  def save(
    self, step: int, state: Any, meta: Mapping[str, Any], metrics: Mapping[str, float] | None = None
  ) -> None:
    """Starts a save; returns as soon as the arrays may be donated.

    Args:
      step: its number, larger than those saved before.
      state: arrays only.
      meta: JSON-able description; step, format, digest, metrics and a hash are added.
      metrics: of validation at this step, if there was one; decides which checkpoint is best.
    """
    metrics = _finite(metrics or {})
    meta = {**meta, 'step': step, 'format': FORMAT, 'metrics': metrics, 'digest': digest(state)}
    meta = json.loads(json.dumps(meta))  # what a reader will see, so that the hash is its hash
    meta['hash'] = _meta_hash(meta)
    self._note(step, metrics)
    with _writing(self._directory):
      self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
        force=True,  # when to save is the caller's decision
      )

  def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
    """Keeps the metrics of an evaluation that was done after the save of its step."""
    folder = self._directory / str(step)
    if step in self._scores or step not in steps_in(self._directory):
      return
    if distributed.is_first():
      files.write_text(folder / _LATER, json.dumps(_finite(metrics)))
    self._note(step, metrics)

  def _note(self, step: int, metrics: Mapping[str, float]) -> None:
    if (score := best.score(self._config, metrics)) is not None:
      self._scores[step] = score

  def wait(self) -> None:
    """Returns when every save that was started is complete; raises what went wrong in one."""
    with _writing(self._directory):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the saves and releases the threads."""
    with _writing(self._directory):
      self._manager.close()


def set_aside(directory: epath.PathLike, steps: list[int]) -> None:
  """Moves checkpoints to DIRECTORY-damaged, so that their steps can be saved again."""
  directory = epath.Path(directory)
  aside = directory.parent / f'{directory.name}-damaged'
  for step in steps:
    target, number = aside / str(step), 1
    while target.exists():
      target, number = aside / f'{step}-{number}', number + 1
    files.move_folder(directory / str(step), target)
    terminal.warn(f'moved the damaged checkpoint {step} to {target}')
