"""Hugging Face folders: config.json, safetensors (also sharded), read lazily and written."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from flaxlm.errors import UserError
from flaxlm.files import read_json

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
PICKLED = ('pytorch_model.bin', 'pytorch_model.bin.index.json', 'tf_model.h5', 'flax_model.msgpack')
# Types whose every value a float32 leaf holds exactly, so that an export gives back the same bits.
EXACT = ('F32', 'F16', 'BF16')
NUMPY = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}


class Tensors:
  """The tensors of a folder by name. Headers are read at once, a tensor when it is asked for.

  Public: dtypes and shapes by name, in the order of the files; metadata of the (first) file.
  """

  def __init__(self, folder: epath.PathLike, file: str = ''):
    """Opens a folder's weights, or one file of it.

    Raises UserError for a folder without safetensors, and for a damaged or missing file.
    """
    self.folder = epath.Path(folder).expanduser()
    self.dtypes: dict[str, str] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.metadata: dict[str, str] = {}
    self._files: dict[str, Any] = {}
    for name, expected in ({file: None} if file else self._listed()).items():
      self._open(self.folder / name, expected)

  def read(self, name: str) -> np.ndarray:
    """One tensor, in the dtype it is stored in."""
    try:
      return self._files[name].get_tensor(name)
    except (safetensors.SafetensorError, OSError) as error:
      raise UserError(f'{self.folder}: {name} cannot be read: {error}') from None

  def _listed(self) -> dict[str, set[str] | None]:
    """File -> the tensors that the index says it holds; None without an index."""
    if not self.folder.is_dir():
      raise UserError(f'{self.folder}: there is no such folder')
    if (self.folder / WEIGHTS).exists():
      return {WEIGHTS: None}
    if (self.folder / INDEX).exists():
      places = read_json(self.folder / INDEX).get('weight_map')
      if not isinstance(places, dict):
        raise UserError(f'{self.folder / INDEX}: it has no weight_map')
      return {f: {n for n, at in places.items() if at == f} for f in sorted(set(places.values()))}
    for name in PICKLED:
      if (self.folder / name).exists():
        raise UserError(
          f'{self.folder / name}: only safetensors are read; convert it where it was trusted, by '
          'AutoModel.from_pretrained(DIR).save_pretrained(NEW_DIR) of transformers, with the class '
          'of its architecture'
        )
    raise UserError(f'{self.folder}: there is no {WEIGHTS}')

  def _open(self, path: epath.Path, expected: set[str] | None) -> None:
    try:
      file = safetensors.safe_open(path, 'numpy')
    except FileNotFoundError:
      raise UserError(f'{path}: {INDEX} names it, but there is no such file') from None
    except (safetensors.SafetensorError, OSError) as error:
      raise UserError(f'{path}: not a whole safetensors file: {error}') from None
    names = file.keys()
    for name in sorted((expected or set()) ^ set(names) if expected is not None else ()):
      raise UserError(f'{path}: {INDEX} and the file do not agree on {name}')
    self.metadata = self.metadata or dict(file.metadata() or {})
    for name in names:
      part = file.get_slice(name)
      self.dtypes[name], self.shapes[name] = part.get_dtype(), tuple(part.get_shape())
      self._files[name] = file


def write(
  path: epath.Path, tensors: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str]
) -> None:
  """Writes a safetensors file. transformers wants the metadata to say {'format': 'pt'}."""
  # A tensor without axes would come back with one.
  content = {name: np.ascontiguousarray(t).reshape(t.shape) for name, t in tensors}
  path.write_bytes(safetensors.numpy.save(content, metadata=dict(metadata)))


def write_weights(
  folder: epath.Path,
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, str],
  largest: float,
) -> None:
  """Writes the weights of a folder: one file, or shards of `largest` bytes at most and their index.

  A tensor is not divided: one that is larger is a shard of its own.
  """
  shards: list[dict[str, np.ndarray]] = [{}]
  held = 0
  for name, tensor in tensors.items():
    if shards[-1] and held + tensor.nbytes > largest:
      shards.append({})
      held = 0
    shards[-1][name] = tensor
    held += tensor.nbytes
  if len(shards) == 1:
    return write(folder / WEIGHTS, tensors.items(), metadata)
  places = {}
  for number, shard in enumerate(shards, 1):
    file = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    write(folder / file, shard.items(), metadata)
    places |= dict.fromkeys(shard, file)
  total = sum(tensor.nbytes for tensor in tensors.values())
  index = {'metadata': {'total_size': total}, 'weight_map': dict(sorted(places.items()))}
  (folder / INDEX).write_text(json.dumps(index, indent=2) + '\n')
