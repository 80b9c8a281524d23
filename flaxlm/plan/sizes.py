"""Parameters, bytes and operations of an experiment, from shapes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from flaxlm.config.transformer import TransformerConfig
from flaxlm.models.flops import train_step_flops
from flaxlm.plan import abstract
from flaxlm.training.experiment import Experiment
from flaxlm.training.footprint import device_bytes, total_bytes
from flaxlm.training.state import init_params
from flaxlm.types import VocabOutput


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of a whole run, and of the device that has most.

  parameters: with the head, without rows that pad a vocabulary; trained_parameters: the values that
  train, where some are frozen, else None; model_flops: of a step, by formula, which takes all for
  trained, and of both passes of R-Drop.
  """

  parameters: int
  trunk_parameters: int
  trained_parameters: int | None
  parameter_bytes: int
  optimizer_bytes: int
  tokens_per_step: int
  model_flops_per_step: float
  parameter_bytes_per_device: int
  optimizer_bytes_per_device: int


def of(built: Experiment) -> Sizes:
  """Of an experiment; LoRA's matrices and moving averages count as parameters and as state."""
  config, state = built.config, built.abstract_state
  boxed = jax.eval_shape(
    lambda key: init_params(config, built.model, built.objective, key), jax.random.key(0)
  )
  shapes = abstract.batch(built)
  outputs = jax.eval_shape(
    lambda params, batch: built.model.apply({'params': params}, batch)[0],
    built.abstract_weights,
    shapes,
  )
  sizes = {key: value.shape for key, value in shapes.items()}
  rest = state.opt_state, state.extras
  partial = built.partition.trained is not None
  passes = 2 if config.tuning.r_drop else 1
  return Sizes(
    parameters=sum(count(node, config.model) for node in boxed.values()),
    trunk_parameters=count(boxed['trunk'], config.model),
    trained_parameters=built.partition.count(state.params)[0] if partial else None,
    parameter_bytes=total_bytes(state.params),
    optimizer_bytes=total_bytes(rest),
    tokens_per_step=sum(
      math.prod(shape) for key, shape in sizes.items() if key.endswith('segment_ids')
    ),
    model_flops_per_step=passes * step_flops(config.model, boxed, sizes, outputs),
    parameter_bytes_per_device=device_bytes(state.params),
    optimizer_bytes_per_device=device_bytes(rest),
  )


def count(boxed: Any, config: TransformerConfig) -> int:
  """Elements of leaves boxed with logical axes, without rows that pad an axis of the vocabulary."""
  total = 0
  is_box = lambda leaf: isinstance(leaf, nn.Partitioned)
  for leaf in jax.tree.leaves(boxed, is_leaf=is_box):
    size = 1
    for axis, name in zip(leaf.value.shape, leaf.names, strict=True):
      size *= config.vocab_size if name == 'vocab' else axis
    total += size
  return total


def step_flops(
  config: TransformerConfig, boxed: Any, shapes: Mapping[str, tuple[int, ...]], outputs: Any = None
) -> float:
  """By `models/flops.py`. outputs: of the head; without them, it predicts tokens."""
  if outputs is not None:
    is_vocab = lambda leaf: isinstance(leaf, VocabOutput)
    found = [x for x in jax.tree.leaves(outputs, is_leaf=is_vocab) if is_vocab(x)]
    shapes = {key: shape for key, shape in shapes.items() if key != 'targets'}
    if found:
      shapes['targets'] = found[0].hidden.shape[:2]
  # A head that ties its table to the trunk's has no leaf, and none at all without a dense layer.
  transform = 'dense' in str(jax.tree.structure(nn.unbox(boxed).get('head', {})))
  return train_step_flops(config, shapes, transform)
