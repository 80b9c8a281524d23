"""Update rules: what stands between the clipped gradient and the learning rate."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from flaxlm.config.optimization import OptimizerConfig
from flaxlm.paths import is_stacked, path_name
from flaxlm.training.layout import Layout

# Muon's updates get about the size of AdamW's (Liu et al. 2025, section 2.2), so that learning
# rate and weight decay mean the same.
_MUON_RMS = 0.2
# Adafactor's defaults (Shazeer and Stern 2018, section 9).
_FACTORED_DECAY = 0.8
_FACTORED_FROM = 128
_LARGEST_RMS = 1.0
_SMALLEST_SCALE = 1e-3


def make_update_rule(config: OptimizerConfig, layout: Layout) -> list[optax.GradientTransformation]:
  """The transformations that `config.name` stands for, without clipping, decay and rate.

  adamw: Adam (Kingma and Ba 2015). adamwscale: its update multiplied by the RMS of the parameter,
  as Adafactor's (Nawrot 2023). lion: the sign of an interpolated momentum (Chen et al. 2023).
  adafactor: Shazeer and Stern 2018, without momentum: factored second moments of matrices with 128
  rows and columns or more (a kernel's inputs and outputs, however many axes they have), updates
  clipped to an RMS of 1 and, with `parameter_scale`, multiplied by that of the parameter. muon:
  orthogonalised momentum (Jordan et al. 2024; Liu et al. 2025) for the kernels of the layers, and
  Adam for everything else. sgd: with `momentum`.
  """
  adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
  match config.name:
    case 'adamw':
      return [adam]
    case 'adamwscale':
      return [adam, _scale_by_parameter()]
    case 'lion':
      return [optax.scale_by_lion(b1=config.b1, b2=config.b2)]
    case 'adafactor':
      scale = [_scale_by_parameter()] if config.parameter_scale else []
      factored = optax.scale_by_factored_rms(
        decay_rate=_FACTORED_DECAY, min_dim_size_to_factor=_FACTORED_FROM
      )
      return [_of_matrices(factored, layout), _clip_by_rms(_LARGEST_RMS), *scale]
    case 'muon':
      return [_muon(config.muon_momentum, adam, layout)]
    case _:
      return [optax.trace(decay=config.momentum)] if config.momentum else []


def _per_matrix(function: Any) -> optax.GradientTransformation:
  """Applies function(update, param, its axes) to each leaf; `axes` spare that of the layers.

  optax takes a leaf for one matrix, and would mix the layers of a stack.
  """

  def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, Any]:
    def one(path: Any, leaf: Any, param: Any) -> Any:
      stacked = is_stacked(path_name(path), leaf)
      return function(leaf, param, tuple(range(int(stacked), leaf.ndim)))

    return jax.tree_util.tree_map_with_path(one, updates, params), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _of_matrices(
  inner: optax.GradientTransformation, layout: Layout
) -> optax.GradientTransformation:
  """`inner`, to which a kernel is a matrix [inputs, outputs], or a stack of them.

  The heads of attention are axes of their own here; optax would factor them one by one or, as they
  are less than 128 wide, not at all.
  """

  def matrix(path: Any, leaf: Any) -> Any:
    name = path_name(path)
    count = layout.num_inputs(name)
    if not count:
      return leaf
    first = int(is_stacked(name, leaf))
    inputs, outputs = leaf.shape[first : first + count], leaf.shape[first + count :]
    # What is not factored keeps its shape, and so lies where the parameter does.
    if min(math.prod(inputs), math.prod(outputs)) < _FACTORED_FROM:
      return leaf
    return leaf.reshape(*leaf.shape[:first], math.prod(inputs), math.prod(outputs))

  matrices = functools.partial(jax.tree_util.tree_map_with_path, matrix)

  def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
    found, state = inner.update(matrices(updates), state, matrices(params))
    return jax.tree.map(lambda new, old: new.reshape(old.shape), found, updates), state

  return optax.GradientTransformation(lambda params: inner.init(matrices(params)), update)


def _rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  return jnp.sqrt(jnp.mean(jnp.square(x), axes, keepdims=True))


def _clip_by_rms(largest: float) -> optax.GradientTransformation:
  return _per_matrix(
    lambda update, _, axes: update / jnp.maximum(1.0, _rms(update, axes) / largest)
  )


def _scale_by_parameter() -> optax.GradientTransformation:
  return _per_matrix(
    lambda update, param, axes: update * jnp.maximum(_rms(param, axes), _SMALLEST_SCALE)
  )


def _muon(
  momentum: float, adam: optax.GradientTransformation, layout: Layout
) -> optax.GradientTransformation:
  """Each layer's kernel is a matrix of its contracted and its other axes."""

  def inputs(path: Any, leaf: Any) -> tuple[int, int]:
    """(first axis of the matrix, axes that are contracted); the latter is 0 for Adam's leaves."""
    name = path_name(path)
    stacked = is_stacked(name, leaf)
    return int(stacked), layout.num_inputs(name) if stacked else 0

  def axes(path: Any, leaf: Any) -> contrib.MuonDimensionNumbers:
    first, count = inputs(path, leaf)
    every = tuple(range(first, leaf.ndim))
    return contrib.MuonDimensionNumbers(every[:count], every[count:])

  def shape(path: Any, leaf: Any) -> Any:
    first, count = inputs(path, leaf)
    fan_in = math.prod(leaf.shape[first : first + count])
    return leaf * (_MUON_RMS * max(fan_in, leaf.size // leaf.shape[0] // fan_in) ** 0.5)

  per_leaf = jax.tree_util.tree_map_with_path
  orthogonal = contrib.scale_by_muon(
    beta=momentum, weight_dimension_numbers=lambda updates: per_leaf(axes, updates)
  )
  scaled = optax.stateless(lambda updates, _: per_leaf(shape, updates))
  label = lambda path, leaf: 'muon' if inputs(path, leaf)[1] else 'adam'
  return optax.partition(
    {'muon': optax.chain(orthogonal, scaled), 'adam': adam}, lambda params: per_leaf(label, params)
  )
