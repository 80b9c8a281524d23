"""The models of flaxlm that public ones become, without a tokenizer or files."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import public_heads
import torch

from flaxlm.config import tree
from flaxlm.interop import convert
from flaxlm.models.model import Model
from flaxlm.paths import leaf_paths, nested

LETTERS = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16', 'int64': 'I64'}


class Arrays:
  """A dict of arrays, read like a file of tensors."""

  def __init__(self, tensors):
    self.tensors = tensors
    self.dtypes = {name: LETTERS[str(t.dtype)] for name, t in tensors.items()}
    self.shapes = {name: t.shape for name, t in tensors.items()}

  def read(self, name):
    return self.tensors[name]


def state(torch_model):
  """Parameters and buffers of a torch model, tied ones once."""
  seen, tensors = set(), {}
  for name, tensor in torch_model.state_dict().items():
    if tensor.data_ptr() not in seen:
      seen.add(tensor.data_ptr())
      tensors[name] = tensor.detach().numpy().copy()
  return Arrays(tensors)


def gradients(torch_model):
  """The gradient of each parameter, tied ones once; 0 where a parameter has none."""
  return Arrays(
    {
      name: (torch.zeros_like(p) if p.grad is None else p.grad).numpy()
      for name, p in torch_model.named_parameters()
    }
  )


def described(torch_model):
  """`convert.Public` of a torch model, from the config that it would save."""
  config = torch_model.config.to_diff_dict() | {'architectures': [type(torch_model).__name__]}
  if 'id2label' in config:
    config['id2label'] = {str(key): value for key, value in config['id2label'].items()}
  source = state(torch_model)
  return convert.describe(config, source.shapes), source


def model_of(public):
  """The flaxlm Model of a description."""
  trunk = tree.load_module('flaxlm.models', public.model.name).Trunk(public.model)
  return Model(trunk, public_heads.head_of(public))


def shapes(model, batch):
  """Path -> shape of every parameter."""
  init = lambda: model.init(jax.random.key(0), batch)['params']
  return leaf_paths(nn.unbox(jax.eval_shape(init)))


def imported(torch_model, batch_of):
  """(Public, Model, batch, parameters, path -> shape) of a torch model.

  batch_of: Public -> batch.
  """
  public, source = described(torch_model)
  batch, model = batch_of(public), model_of(public)
  leaves = shapes(model, batch)
  loaded = convert.load(public, source, leaves)
  params = jax.tree.map(jnp.asarray, nested(loaded.leaves))
  return public, model, batch, params, leaves


def assert_close(ours, theirs, weights=None, scale=1e-4):
  """max |difference| within `scale` of the largest value, where `weights` is not 0."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape and np.isfinite(theirs).all()
  difference = np.abs(ours - theirs)
  if weights is not None:
    assert np.any(weights)
    difference = difference[np.asarray(weights) != 0]
  assert difference.max() <= scale * np.abs(theirs).max(), difference.max() / np.abs(theirs).max()


ALIKE = ('key/bias', 'span/bias', 'out/bias')


def assert_same_gradients(ours, theirs):
  """1e-3 of each leaf's maximum; leaves that are analytically zero against the global norm.

  Those are biases of keys, which add the same to every score of a query where keys are not rotated,
  and of what is chosen among tokens or texts.
  """
  ours = {path: np.asarray(leaf) for path, leaf in leaf_paths(ours).items()}
  norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in theirs.values()))
  assert norm > 0 and set(theirs) <= set(ours)
  for path, leaf in theirs.items():
    largest = np.abs(leaf).max()
    # Rotated keys are not all moved alike by their bias.
    dead = largest <= 1e-5 * norm if path.endswith(ALIKE) else not largest
    difference = np.abs(ours[path] - leaf).max()
    assert difference <= (1e-6 * norm if dead else 1e-3 * largest), (path, difference, largest)
