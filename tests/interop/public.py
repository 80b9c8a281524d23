"""Public models at random initialisation, and the same models here, for comparison."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch

from flaxlm.config import tree
from flaxlm.decoding import logits
from flaxlm.interop import convert
from flaxlm.models.model import Model
from flaxlm.objectives import classification, masked_lm, next_token
from flaxlm.training.paths import leaf_paths, nested

LETTERS = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16', 'uint8': 'U8', 'int64': 'I64'}


class Dict:
  """A dict of arrays, read like a file of tensors."""

  def __init__(self, tensors):
    self.tensors = tensors
    self.dtypes = {name: LETTERS[str(t.dtype)] for name, t in tensors.items()}
    self.shapes = {name: t.shape for name, t in tensors.items()}

  def read(self, name):
    return self.tensors[name]


def randomised(model, seed=0):
  """The model in evaluation mode, all parameters away from the constants they start at."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator) * 0.1
      parameter.copy_(noise + (1.0 if _is_scale(name) else 0.0))
  return model.eval()


def _is_scale(name):
  return name.endswith('weight') and ('norm' in name.lower() or '.ln_' in name)


def described(torch_model):
  """`convert.Public` of a torch model, from what it would save."""
  config = torch_model.config.to_dict() | {'architectures': [type(torch_model).__name__]}
  config = {key: value for key, value in config.items() if value is not None or key == 'n_inner'}
  if 'id2label' in config:
    config['id2label'] = {str(key): value for key, value in config['id2label'].items()}
  return convert.describe(config, state(torch_model).shapes)


def state(torch_model):
  """Its parameters and buffers, tied ones once."""
  seen, tensors = set(), {}
  for name, tensor in torch_model.state_dict().items():
    if tensor.data_ptr() not in seen or not tensor.numel():
      seen.add(tensor.data_ptr())
      tensors[name] = tensor.detach().numpy().copy()
  return Dict(tensors)


def gradients(torch_model):
  """The gradient of each parameter, tied ones once; 0 where a parameter has none."""
  return Dict(
    {
      name: (torch.zeros_like(p) if p.grad is None else p.grad).numpy()
      for name, p in torch_model.named_parameters()
    }
  )


def model_of(public):
  """The flaxlm Model of a description."""
  trunk = tree.load_module('flaxlm.models', public.model.name).Trunk(public.model)
  if public.head.objective == 'masked_lm':
    head = masked_lm.Head(public.model, public.head.options['next_sentence'])
  elif public.head.objective == 'classification':
    decoder = public.model.name == 'decoder'
    head = classification.Head(
      public.model, len(public.labels), 'last' if decoder else 'first', public.model.name
    )
  else:
    head = next_token.Head(public.model)
  return Model(trunk, head)


@functools.cache
def _shapes(model, batch):
  import flax.linen as nn

  batch = {key: np.zeros(shape, dtype) for key, shape, dtype in batch}
  return leaf_paths(
    nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), batch)['params']))
  )


def shapes(model, batch):
  """Path -> shape of every parameter."""
  key = tuple((name, value.shape, str(value.dtype)) for name, value in batch.items())
  return _shapes(model, key)


def imported(torch_model, batch):
  """(Public, Model, parameters, path -> shape) of a torch model."""
  public = described(torch_model)
  model = model_of(public)
  leaves = shapes(model, batch)
  loaded = convert.load(public, state(torch_model), leaves)
  return public, model, nested(loaded.leaves), leaves


def whole(output):
  """Logits of a vocabulary head."""
  return np.asarray(logits(output))


def assert_close(ours, theirs, weights=None, scale=1e-4):
  """max |difference| within `scale` of the largest value, where `weights` is not 0."""
  ours, theirs = np.asarray(ours), theirs.detach().numpy()
  assert ours.shape == theirs.shape
  difference = np.abs(ours - theirs)
  if weights is not None:
    difference = difference[np.asarray(weights) != 0]
  assert difference.max() <= scale * np.abs(theirs).max(), difference.max() / np.abs(theirs).max()


# Analytically zero: a bias of the keys adds the same to every score of a query.
DEAD = 'key/bias'


def assert_same_gradients(ours, theirs, rows=None):
  """1e-3 of each leaf's maximum; leaves analytically zero against the global norm."""
  ours = {path: np.asarray(leaf) for path, leaf in leaf_paths(ours).items()}
  norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in theirs.values()))
  assert norm > 0 and set(ours) == set(theirs)
  for path, leaf in theirs.items():
    scale = 1e-4 * norm if DEAD in path else max(1e-3 * np.abs(leaf).max(), 1e-7 * norm)
    difference = np.abs(ours[path] - leaf).max()
    assert difference <= scale, (path, difference, np.abs(leaf).max())
