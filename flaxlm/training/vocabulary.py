"""A vocabulary that grows in `init_from`: old tokens keep ids and rows, new ones come after them.

A new row is the mean of the old ones, as of Hewitt (2021, Initializing New Word Embeddings for
Pretrained Language Models): a row drawn at random may outdo all that were trained, so that the
model would say nothing but new tokens; the mean takes next to nothing from the old ones.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath

from flaxlm.config.schema import RestoreConfig
from flaxlm.data import packing
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError
from flaxlm.objectives.base import Objective
from flaxlm.paths import leaf_paths

DECLARED = 'vocab_size'


def growth(
  source: epath.Path, meta: Mapping[str, Any], tokenizer: Tokenizer, restore: RestoreConfig
) -> tuple[int, int] | None:
  """(tokens of the checkpoint, tokens now) where the vocabulary grew, as was declared; else None.

  Args:
    source: workdir that the checkpoint belongs to.
    meta: of the checkpoint.
    tokenizer: that of the model.
    restore: its `change` declares the growth.

  Raises:
    UserError: where the vocabulary grew, and that is not declared.
  """
  if meta['tokenizer'] == tokenizer.fingerprint or not (source / 'tokenizer').is_dir():
    return None
  try:
    older = Tokenizer.load(source / 'tokenizer')
  except UserError:
    return None  # Nothing to compare with: it is another tokenizer.
  if older.fingerprint != meta['tokenizer'] or not tokenizer.extends(older):
    return None
  if DECLARED not in restore.change:
    if 'tokenizer' in restore.change:
      return None
    change = ','.join([*restore.change, DECLARED])
    raise UserError(
      f'config.tokenizer.add: the vocabulary of the checkpoint of config.init_from grows from '
      f'{older.vocab_size} to {tokenizer.vocab_size} tokens; declare it by '
      f'--config.restore.change={change}'
    )
  return older.vocab_size, tokenizer.vocab_size


def leaves(model: nn.Module, objective: Objective) -> set[str]:
  """Paths of the parameters that have a row for each token."""
  batch = jax.tree.map(jnp.asarray, packing.pack_rows([[]], objective.streams))
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))['params']
  boxed = leaf_paths(params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  return {path for path, leaf in boxed.items() if getattr(leaf, 'names', ' ')[0] == 'vocab'}


def grow(stored: jax.Array, fresh: jax.Array, old: int, new: int) -> jax.Array:
  """`old` rows as stored, those up to `new` their mean, the padding as in `fresh` [rows, ...]."""
  kept = stored[:old]
  added = jnp.broadcast_to(kept.mean(0), (new - old, *kept.shape[1:]))
  return jnp.concatenate([kept, added, fresh[new:]]).astype(fresh.dtype)
