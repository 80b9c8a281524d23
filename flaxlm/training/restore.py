"""Weights of another run: to start from (`init_from`), or to evaluate and decode with.

`init_from` takes weights only, begins at step 0 with a fresh optimizer, and accounts for every
leaf; going on with a run is another thing (`resume.py`).
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from etils import epath

from flaxlm import distributed, sharding, terminal
from flaxlm.config import overrides, tree
from flaxlm.config.schema import Config, RestoreConfig
from flaxlm.config.tuning import TuningConfig
from flaxlm.errors import UserError, nearest
from flaxlm.paths import is_stacked, leaf_paths, nested, virtual_paths
from flaxlm.training import checkpoint, matching, resume, vocabulary, weights
from flaxlm.training.writers import write_json
from flaxlm.types import DELTA

if TYPE_CHECKING:
  from flaxlm.training.experiment import Experiment

_CHANGE_TOKENIZER = 'tokenizer'
# Leaves with a number for each label, and labels that an imported model has for want of names.
_CLASSES = re.compile('head/classes/out/')
_UNNAMED = re.compile(r'LABEL_\d+')


def init_from(experiment: 'Experiment', params: Any, workdir: epath.PathLike) -> Any:
  """Parameters from the newest whole checkpoint of `config.init_from`; prints what became of each.

  Args:
    experiment: its `config.restore` declares all that may differ.
    params: as initialised; leaves that are declared fresh are taken from here.
    workdir: where restore_report.json is written.

  Returns:
    Parameters sharded as `experiment.abstract_state.params`.

  Raises:
    UserError: for a leaf that is neither loaded nor declared, a pattern that matches nothing, model
      fields that differ from the checkpoint's config, or another tokenizer.
  """
  config = experiment.config
  source = epath.Path(config.init_from).expanduser()
  directory = source / 'checkpoints'
  if not checkpoint.steps_in(directory):
    raise UserError(f'config.init_from: {source} has no checkpoints')
  wanted = leaf_paths(experiment.abstract_state.params)
  fresh = leaf_paths(params)

  def read(step: int, meta: dict[str, Any]) -> tuple[Any, matching.Report, dict[str, Any]]:
    saved = tree.from_dict(meta['config'])
    _check_model(saved, config)
    sizes = vocabulary.growth(source, meta, experiment.tokenizer, config.restore)
    grown = vocabulary.leaves(experiment.model, experiment.objective) if sizes else set()
    if not sizes:
      _check_tokenizer(meta, experiment.tokenizer.fingerprint, config.restore)
    stored = checkpoint.stored_params(directory, step)
    added = _check_deltas(stored, wanted, source)
    if saved.tuning.lora_rank and config.tuning.lora_rank:
      _check_lora(saved.tuning, config.tuning, source)
    stored_parts, wanted_parts = matching.parts(stored), matching.parts(wanted)
    known = {name: part for name, part in wanted_parts.items() if part.path not in added}
    plan = matching.match(stored_parts, known, config.restore, grown)
    plan |= {name: None for name, part in wanted_parts.items() if part.path in added}
    if any(part and _CLASSES.match(name) for name, part in plan.items()):
      _check_labels(saved, config)
    needed = sorted({part.path for part in plan.values() if part})
    targets = {path: _target(stored[path], wanted.get(path), experiment.mesh) for path in needed}
    loaded = checkpoint.restore_params(directory, step, targets, meta)
    for path in grown:
      if plan[path]:
        loaded[plan[path].path] = vocabulary.grow(loaded[plan[path].path], fresh[path], *sizes)
    return plan, matching.report(plan, stored_parts, wanted_parts, grown), loaded

  step, _, (plan, report, loaded), _ = checkpoint.newest(directory, read)
  _show(report, source, step)
  if distributed.is_first():
    write_json(
      epath.Path(workdir) / 'restore_report.json',
      {'workdir': str(source), 'step': step, **dataclasses.asdict(report)},
    )
  return nested(
    {path: _fill(path, leaf, fresh[path], plan, loaded) for path, leaf in wanted.items()}
  )


def _target(stored: Any, wanted: Any, mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
  """A leaf as it is stored, placed as in the model where the shapes agree, else on every device."""
  fits = wanted is not None and wanted.shape == stored.shape
  placed = wanted.sharding if fits else sharding.replicated(mesh)
  return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=placed)


def _fill(
  path: str,
  leaf: jax.ShapeDtypeStruct,
  fresh: jax.Array,
  plan: Mapping[str, matching.Part | None],
  loaded: Mapping[str, jax.Array],
) -> jax.Array:
  """One leaf of the model, put together from the parts that `plan` names."""
  names = virtual_paths(path, leaf)
  sources = [plan[name] for name in names]
  if not any(sources):
    return fresh
  if not is_stacked(path, leaf):
    value = _part(sources[0], loaded).reshape(leaf.shape)
  elif _is_whole(sources, loaded):
    value = loaded[sources[0].path].reshape(leaf.shape)
  else:
    value = jnp.stack(
      [
        fresh[layer] if source is None else _part(source, loaded).reshape(leaf.shape[1:])
        for layer, source in enumerate(sources)
      ]
    )
  return jax.device_put(value.astype(leaf.dtype), leaf.sharding)


def _is_whole(sources: list[matching.Part | None], loaded: Mapping[str, jax.Array]) -> bool:
  """Whether the sources are all layers of one stack, in order."""
  if None in sources or len({source.path for source in sources}) > 1:
    return False
  layers = [source.layer for source in sources]
  return layers == list(range(loaded[sources[0].path].shape[0]))


def _part(source: matching.Part, loaded: Mapping[str, jax.Array]) -> jax.Array:
  whole = loaded[source.path]
  return whole if source.layer is None else whole[source.layer]


def _show(report: matching.Report, source: epath.Path, step: int) -> None:
  """Every leaf that was not simply loaded by name; restore_report.json has those too."""
  terminal.say(f'weights from {source}, step {step}')
  for name, paths in dataclasses.asdict(report).items():
    shown = [*paths[:2], '...'] if name == 'loaded' and len(paths) > 2 else paths
    terminal.say(f'  {name}: {len(paths)}' + (f' ({", ".join(shown)})' if paths else ''))


def _check_deltas(
  stored: Mapping[str, Any], wanted: Mapping[str, Any], source: epath.Path
) -> set[str]:
  """Paths of what LoRA adds to the model, which are fresh unless the checkpoint has LoRA too.

  Raises:
    UserError: if the checkpoint has LoRA and the model has not: its weights would lack a part.
  """
  has = lambda leaves: {path for path in leaves if path.startswith(f'{DELTA}/')}
  if has(stored) and not has(wanted):
    raise UserError(
      f'config.init_from: {source} was tuned with LoRA, which its weights lack; merge it first: '
      f'{_merge(source)}'
    )
  return set() if has(stored) else has(wanted)


def _merge(source: epath.Path) -> str:
  return f'python -m flaxlm merge --workdir={source} --to=NEW'


def _check_labels(saved: Config, now: Config) -> None:
  """Raises UserError where a head for certain labels would be read as one for others."""
  before, after = (tuple(getattr(config.task, 'labels', ())) for config in (saved, now))
  if before and after and before != after and not all(map(_UNNAMED.fullmatch, before)):
    raise UserError(
      f'config.task.labels: the head of the checkpoint of config.init_from was trained for '
      f'{",".join(before)}, in this order, and this run has {",".join(after)}; make them equal, or '
      'leave the head out by --config.restore.skip=^head/'
    )


def _check_lora(saved: TuningConfig, now: TuningConfig, source: epath.Path) -> None:
  """Raises UserError where what LoRA has learned does not fit, or would be scaled otherwise."""
  if now.lora_rank != saved.lora_rank:
    raise UserError(
      f'config.tuning.lora_rank: what LoRA added to the checkpoint of config.init_from has rank '
      f'{saved.lora_rank}; go on with that rank, or merge it first: {_merge(source)}'
    )
  if now.lora_alpha != saved.lora_alpha:
    raise UserError(
      f'config.tuning.lora_alpha: what LoRA added to the checkpoint of config.init_from is '
      f'multiplied by {saved.lora_alpha:g} / {saved.lora_rank}; set it to {saved.lora_alpha:g}'
    )


def _check_model(saved: Config, now: Config) -> None:
  """Raises UserError for model fields that differ and are not declared."""
  declared = {name.removeprefix('model.') for name in now.restore.change} - {_CHANGE_TOKENIZER}
  known = [field.name for field in dataclasses.fields(now.model)]
  for name in declared:
    if name not in known:
      raise UserError(f'config.restore.change: no model field {name!r}{nearest(name, known)}')
  for key, before, after in overrides.differing_fields(saved, now):
    name = key.removeprefix('model.')
    if not key.startswith('model.') or key in resume.RUN_ONLY or name in declared:
      continue
    raise UserError(
      f'config.{key}: the checkpoint of config.init_from has {before!r}, this model {after!r}; '
      f'make them equal, or declare it by --config.restore.change={_declared(now.restore, name)}'
    )


def _check_tokenizer(meta: Mapping[str, Any], fingerprint: str, restore: RestoreConfig) -> None:
  if meta['tokenizer'] != fingerprint and _CHANGE_TOKENIZER not in restore.change:
    raise UserError(
      'config.tokenizer: differs from the tokenizer of the checkpoint of config.init_from, so that '
      'its embeddings would stand for other tokens; set config.tokenizer.path to its tokenizer '
      'directory, or declare it by --config.restore.change='
      f'{_declared(restore, _CHANGE_TOKENIZER)}'
    )


def _declared(restore: RestoreConfig, name: str) -> str:
  """The text of `restore.change` with one more name."""
  return ','.join([*restore.change, name])


def open_run(
  workdir: epath.PathLike, which: str | int, make: Callable[[Config], Any]
) -> tuple[Any, Any, int | str]:
  """The weights of a run, for everything but training.

  Args:
    workdir: of the run.
    which: see `read_run`.
    make: config of the run -> an object with `tokenizer`, `held_out`, `stored_parts` and `weights`.

  Returns:
    (what `make` returned, {'trunk', 'head'}, step or `average:N`).

  Raises:
    UserError: if there is no such checkpoint, it is damaged, or the tokenizer or what was held out
      is not the run's.
  """
  directory = epath.Path(workdir) / 'checkpoints'
  made = []

  def read(step: int, meta: dict[str, Any]) -> Any:
    if not made:
      made.append(make(tree.from_dict(meta['config'])))
    resume.check_tokenizer(meta, made[0].tokenizer.fingerprint, workdir)
    resume.check_held_out(meta, made[0].held_out, workdir)
    terminal.phase('init', f'checkpoint {step}')
    return made[0].weights(**checkpoint.restore_tree(directory, step, made[0].stored_parts, meta))

  found, name = read_run(directory, which, read)
  return made[0], found, name


def read_run(
  directory: epath.PathLike, which: str | int, read: Callable[[int, dict[str, Any]], Any]
) -> tuple[Any, int | str]:
  """(a tree of arrays, the step it is of): of one checkpoint, or the mean of several.

  Args:
    directory: of the checkpoints.
    which: 'latest' (falls back on an older whole one, loudly), 'best', a step, or 'average:N' for
      the mean of the newest N, which is then the name in place of the step.
    read: (step, its description) -> the tree.

  Raises:
    UserError: if there is no such checkpoint, or it is damaged.
  """
  steps = checkpoint.find(directory, which)
  if which == 'latest':
    step, _, found, _ = checkpoint.newest(directory, read)
    return found, step

  def whole(step: int) -> Any:
    try:
      return read(step, checkpoint.read_meta(directory, step))
    except checkpoint.Damaged as error:
      raise UserError(f'{directory}/{step}: damaged: {error}') from None

  if len(steps) == 1:
    return whole(steps[0]), steps[0]
  terminal.say(f'the mean of checkpoints {", ".join(map(str, steps))}')
  return weights.mean(map(whole, steps)), str(which)
