"""Writes a run as a Hugging Face folder: config.json, model.safetensors, tokenizer files.

  python -m flaxlm export --workdir=runs/sst2 --to=exported/sst2

The class is that of the import, or the one whose head the objective has; --architecture=BertModel
writes a trunk without its head. An imported run gives back the tensors it was made of, byte for
byte; another one is written in float32, or in --dtype.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from os.path import expanduser
from typing import Any

from etils import epath

from flaxlm import commandline, terminal
from flaxlm.commands import _folder, _public_tokenizer
from flaxlm.errors import UserError
from flaxlm.files import read_json

DTYPES = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16'}


def main(argv: Sequence[str]) -> None:
  parser = commandline.Parser(__doc__)
  commandline.add_run_flags(parser)
  parser.add_argument('--to', required=True, type=expanduser, help='folder to write; new')
  parser.add_argument('--architecture', default='', help='class to write, such as BertModel')
  parser.add_argument('--dtype', choices=list(DTYPES), help='of all weights')
  parser.add_argument(
    '--max-shard-size', type=gigabytes, default=50e9, metavar='GB',
    help='weights beyond so many GB are several files; 50 if unset',
  )  # fmt: skip
  args = parser.parse(argv)
  target = _folder.new('--to', args.to)
  terminal.phase('init', f'checkpoint {args.checkpoint} of {args.workdir}')
  from flaxlm.data.tokenizer import Tokenizer
  from flaxlm.interop import convert, files

  workdir = epath.Path(args.workdir)
  config, leaves, step = _read(workdir, args.checkpoint)
  _warn_of_other_best(workdir, args.checkpoint, step)
  objective, imported = _objective(config), workdir / 'hf'
  manifest = _manifest(imported, args.architecture)
  if manifest:
    public = convert.describe(read_json(imported / convert.CONFIG), manifest['tensors'])
  else:
    tokenizer = Tokenizer.load(workdir / 'tokenizer')
    public = _public(config, objective, tokenizer, args.architecture)
    _warn_of_unsaid(config)
  source, kept = manifest.get('tensors', {}), {}
  if args.dtype:
    # Of what is learned: a table of numbers of positions stays one of whole numbers.
    made = lambda known: DTYPES[args.dtype] if known in files.EXACT else known
    source = {name: [made(known), shape] for name, (known, shape) in source.items()}
  if manifest.get('kept'):
    held = files.Tensors(imported, convert.KEPT)
    kept = {name: held.read(name) for name in held.shapes}
  tensors = convert.save(public, leaves, source, kept, DTYPES[args.dtype or 'float32'])
  with _folder.staged(target) as temporary:
    metadata = manifest.get('metadata') or {'format': 'pt'}
    files.write_weights(temporary, tensors, metadata, args.max_shard_size)
    text = json.dumps(_described(public.config_json, args.dtype), indent=2, sort_keys=True)
    (temporary / convert.CONFIG).write_text(text + '\n')
    if imported.exists():
      _public_tokenizer.copy(imported, temporary, bool(manifest))
    else:
      _public_tokenizer.write(tokenizer, temporary, config, objective, public)
  terminal.close()
  print(f'{public.architecture}: {len(tensors)} tensors of step {step} -> {target}')


def _described(config_json: dict[str, Any], dtype: str) -> dict[str, Any]:
  """config.json with the dtype of the export, which transformers reads the weights as."""
  names = {'dtype'} | ({'torch_dtype'} & config_json.keys()) if dtype else ()
  return config_json | dict.fromkeys(names, dtype)


def gigabytes(text: str) -> float:
  """A positive number of GB, in bytes."""
  size = float(text) * 1e9
  if not size > 0:
    raise ValueError(text)
  return size


def _read(workdir: epath.Path, which: str) -> tuple[Any, dict[str, Any], int | str]:
  """(config, weights by path, step or `average:N`) of a run, on one device."""
  import jax
  import numpy as np

  from flaxlm.config import recipe, tree
  from flaxlm.paths import leaf_paths
  from flaxlm.training import restore, weights

  recipe.check_workdir(str(workdir))
  directory = workdir / 'checkpoints'
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  configs = []

  def read(step: int, meta: dict[str, Any]) -> Any:
    configs.append(tree.from_dict(meta['config']))
    return weights.read(directory, step, meta, here)

  found, step = restore.read_run(directory, which, read)
  return configs[-1], jax.tree.map(np.asarray, leaf_paths(found)), step


def _warn_of_other_best(workdir: epath.Path, which: str, step: int | str) -> None:
  """Says where `predict`, and eval.py of a test set, would take another checkpoint."""
  from flaxlm.training import checkpoint

  directory = workdir / 'checkpoints'
  if which == 'latest' and checkpoint.best_or_latest(directory) == 'best':
    (best,) = checkpoint.find(directory, 'best')
    if best != step:
      terminal.warn(f'checkpoint {best} is the best, and {step} is exported; see --checkpoint=best')


def _manifest(imported: epath.Path, architecture: str) -> dict[str, Any]:
  """That of the import; empty where it was another class or none."""
  from flaxlm.interop import convert

  if not (imported / convert.MANIFEST).exists():
    return {}
  manifest = read_json(imported / convert.MANIFEST)
  return manifest if architecture in ('', manifest['architecture']) else {}


def _public(config: Any, objective: Any, tokenizer: Any, architecture: str) -> Any:
  """The class to write of a run, `architecture` if that is given."""
  from flaxlm.interop import convert

  labels = tuple(getattr(config.task, 'labels', ()))
  options = _options(config, objective)
  public = convert.for_export(config.model, objective.name, options, labels, architecture)
  ids = _token_ids(public.family, tokenizer)
  return dataclasses.replace(public, config_json={**public.config_json, **ids})


def _warn_of_unsaid(config: Any) -> None:
  """Names fields that change predictions and that no file of a public folder holds."""
  for node, name in (('objective', 'piece'), ('task', 'threshold')):
    options = {item.name: item.default for item in dataclasses.fields(getattr(config, node))}
    value = getattr(getattr(config, node), name, None)
    if name in options and value != options[name]:
      terminal.warn(f'config.{node}.{name}={value}: no file of the folder says so')


def _options(config: Any, objective: Any) -> dict[str, Any]:
  """Fields of the objective's config that a class has to agree with."""
  options = {item.name: getattr(objective, item.name) for item in dataclasses.fields(objective)}
  if not getattr(config.task, 'reads_pairs', True):
    options.pop('pair_separators', None)  # No text had one.
  return options


def _is_idle(tokenizer: Any, id: int, ids: Mapping[str, int]) -> bool:
  """Whether the token is one that an encoder never reads: special, and without a part in it."""
  roles = tokenizer.published_spec()['roles']
  used = {roles.get('mask'), roles.get('unk'), ids.get('cls_token_id'), ids.get('sep_token_id')}
  return id in tokenizer.special_ids - used


def _objective(config: Any) -> Any:
  """The config of the objective that says which class it is, with `auto` resolved."""
  from flaxlm.objectives import mixture

  objective = config.objective
  if objective.name == 'mixture':  # Its members have one head; it decodes as the first does.
    objective = next(iter(mixture.member_configs(objective).values()))
  if hasattr(objective, 'resolved'):  # What `auto` means, a public class knows by its name.
    objective = objective.resolved(config.model.name)
  return objective


def _token_ids(family: Any, tokenizer: Any) -> dict[str, int]:
  """Fields of config.json that say which tokens have a role; UserError for ids it cannot have."""
  ids = {}
  for role in ('pad', 'bos', 'eos', 'cls', 'sep'):
    try:
      ids[f'{role}_token_id'] = getattr(tokenizer, f'{role}_id')
    except UserError:
      continue  # The vocabulary has no such token.
  if ids.get('pad_token_id') == ids.get('eos_token_id'):
    ids.pop('pad_token_id', None)  # A stand-in: a classifier would take the end of a text for it.
  if family.start_role:
    ids['decoder_start_token_id'] = ids[f'{family.start_role}_token_id']
  for name, role in family.forced.items():
    ids[name] = ids[f'{role}_token_id']
  for name, allowed in family.required.items():
    if ids.get(name, allowed[0]) not in allowed:
      if name == 'pad_token_id' and _is_idle(tokenizer, allowed[0], ids):
        ids[name] = allowed[0]  # Padding is masked, so that any token may stand for it.
        continue
      raise UserError(
        f'config.tokenizer: the files of {family.name} want '
        f'{name}={allowed[0]}, and the vocabulary has {ids[name]}'
      )
  return ids
