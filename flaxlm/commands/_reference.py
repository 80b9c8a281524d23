"""The check of a converted model: outputs equal to those of the original, or at least finite."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from flaxlm import terminal
from flaxlm.data import packing
from flaxlm.errors import UserError
from flaxlm.interop import files
from flaxlm.interop.convert import Public
from flaxlm.models.family import family_of
from flaxlm.models.model import Model
from flaxlm.models.scores import logits
from flaxlm.types import VocabOutput

FILE = 'reference.safetensors'
# Of the largest output: what float32 products of another order may differ by, in a deep model.
TOLERANCE = 1e-3


def check(public: Public, model: Model, params: Any, folder: epath.Path) -> None:
  """Runs the model once.

  Args:
    public: what the folder is.
    model: the model, whose head may lack its parameters if the class is a trunk.
    params: its parameters.
    folder: of the original; FILE there holds its inputs and outputs.

  Raises:
    UserError: for outputs that are not finite, or not those of the original.
  """
  reference = {}
  if (folder / FILE).exists():
    tensors = files.Tensors(folder, FILE)
    reference = _rows({name: tensors.read(name) for name in tensors.shapes})
    if 'input_ids' not in reference:
      raise UserError(f'{folder / FILE}: it has no input_ids')
    _check_padding(public, reference, folder / FILE)
  else:
    length = min(16, public.model.max_length)
    ids = np.random.default_rng(0).integers(0, public.model.vocab_size, (2, length))
    reference = {'input_ids': ids}
  found = outputs(public, model, params, batch_of(public, reference))
  if not np.isfinite(found).all():
    raise UserError(f'{folder}: the converted model gives outputs that are not finite')
  name = 'last_hidden_state' if public.head.trunk_only else 'logits'
  if name not in reference:
    if (folder / FILE).exists():
      raise UserError(f'{folder / FILE}: it has no {name}')
    return
  expected = reference[name]
  if expected.shape != found.shape:
    raise UserError(f'{folder / FILE}: {name} {list(expected.shape)} is not {list(found.shape)}')
  real = np.ones(found.shape[:2]) if found.ndim == 3 else np.ones(found.shape[:1])
  if 'attention_mask' in reference and found.shape[:2] == reference['attention_mask'].shape:
    real = reference['attention_mask']
  difference = np.abs(found - expected)[real != 0].max() / np.abs(expected[real != 0]).max()
  if not difference <= TOLERANCE:
    raise UserError(
      f'{folder / FILE}: the converted model differs from the original by {difference:.1e} of its '
      f'largest {name}'
    )
  terminal.say(f'{name} agree with {FILE} to {difference:.1e} of the largest')


def _rows(reference: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """With a row for each choice [B, choices, L], and what begins and ends at a token as one."""
  found = dict(reference)
  ids = found.get('input_ids')
  if ids is not None and ids.ndim == 3:
    found = {n: a.reshape(-1, *a.shape[2:]) if a.ndim == 3 else a for n, a in found.items()}
    if 'logits' in found:
      found['logits'] = found['logits'].reshape(-1, 1)
  ends = 'start_logits', 'end_logits'
  if all(name in found for name in ends):
    found['logits'] = np.stack([found[name] for name in ends], -1)
  return found


def _check_padding(public: Public, reference: Mapping[str, np.ndarray], file: epath.Path) -> None:
  """UserError if the original's classifier reads a place that is padding, and so no text."""
  if not public.head.is_pooled or 'attention_mask' not in reference:
    return
  mask = reference['attention_mask']
  if public.head.options['pooling'] == 'first' and not mask[:, 0].all():
    raise UserError(f'{file}: {public.architecture} reads the first place; pad on the right')
  if public.model.name == 'xlnet' and not mask[:, -1].all():
    raise UserError(f'{file}: {public.architecture} reads the last place; pad on the left')


def batch_of(public: Public, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A batch of the inputs that the original takes: [B, L] each, every row one sequence.

  Padding may stand on either side. Places are counted with it, as most originals do; those of a
  family whose `counts_padding` is False begin with the text.
  """
  ids = arrays['input_ids'].astype(np.int32)
  segments = arrays.get('attention_mask', np.ones_like(ids)).astype(np.int32)
  last = ids.shape[1] - 1 - np.argmax(segments[:, ::-1], -1, keepdims=True).astype(np.int32)
  if public.model.name == 'encoder_decoder':
    if public.head.is_pooled:
      # As the original does by itself: the decoder reads the text one place later.
      shifted = np.insert(ids, 0, public.start, axis=1)[:, :-1]
      streams = packing.one_segment('encoder_', ids, segments)
      # It masks no padding.
      streams |= packing.one_segment('decoder_', shifted, np.ones_like(shifted))
      return {**streams, 'target_positions': last}
    targets = arrays.get('decoder_input_ids', ids).astype(np.int32)
    streams = packing.one_segment('encoder_', ids, segments)
    return streams | packing.one_segment('decoder_', targets, np.ones_like(targets))
  batch = packing.one_segment('', ids, segments)
  batch['target_positions'] = batch['positions']
  if not public.family.counts_padding:
    batch['positions'] = np.maximum(np.cumsum(segments, -1, dtype=np.int32) - 1, 0)
  first = np.zeros((len(ids), 1), np.int32)
  if public.head.is_pooled:
    batch['target_positions'] = first if public.head.options['pooling'] == 'first' else last
  if family_of(public.model.name) == 'encoder':
    batch['nsp_positions'] = first
    if public.model.token_types:
      types = arrays.get('token_type_ids', np.zeros_like(ids))
      batch['token_type_ids'] = types.astype(np.int32)
  return batch


def outputs(
  public: Public, model: Model, params: Any, batch: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Logits [B, L, V or classes] or [B, classes]; hidden states [B, L, D] of a trunk alone."""
  if public.head.trunk_only:
    run = jax.jit(lambda params: model.trunk.apply({'params': params['trunk']}, batch).hidden)
    return np.asarray(run(params))
  result, _ = jax.jit(model.apply)({'params': params}, batch)
  result = result['mlm'] if isinstance(result, dict) else result
  if isinstance(result, VocabOutput):
    return np.asarray(logits(result))
  return np.asarray(result[:, 0] if public.head.is_pooled else result)
