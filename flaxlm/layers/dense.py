"""Linear maps with named logical axes."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dense(nn.Module):
  """Contracts the last `len(axes_in)` axes of the input with a kernel.

  The kernel has shape (*sizes_in, *sizes_out) and logical axes (*axes_in, *axes_out). Linen's
  DenseGeneral flattens its kernel while initialising, which breaks logical axes under a mesh; this
  one doesn't. The output has the input's dtype, or `dtype`.
  """

  sizes_in: tuple[int, ...]
  sizes_out: tuple[int, ...]
  axes_in: tuple[str, ...]
  axes_out: tuple[str, ...]
  kernel_init: Callable
  use_bias: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param(
      'kernel',
      nn.with_logical_partitioning(self.kernel_init, (*self.axes_in, *self.axes_out)),
      (*self.sizes_in, *self.sizes_out),
    ).astype(x.dtype)
    # As a product of two matrices: with more than one contracted axis, as the gradient would have,
    # XLA's CPU compiler transposes an operand in memory first.
    leading = x.shape[: x.ndim - len(self.sizes_in)]
    fan_in = math.prod(self.sizes_in)
    a, b = x.reshape(-1, fan_in), kernel.reshape(fan_in, -1)
    y = jnp.matmul(a, b, preferred_element_type=self.dtype)
    y = y.reshape(*leading, *self.sizes_out)
    if self.use_bias:
      # One of width D is copied, not divided: to gather it would take longer than to keep it.
      axes = ('vector',) if self.axes_out == ('embed',) else self.axes_out
      zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), axes)
      # Added in its own precision: its gradient is a sum over all rows.
      y = y + self.param('bias', zeros, self.sizes_out)
    return y.astype(self.dtype or x.dtype)


def dropout(module: nn.Module, x: jax.Array, rate: float, deterministic: bool) -> jax.Array:
  """Zeroes elements with chance `rate` and scales the rest, with the module's stream 'dropout'."""
  if deterministic or rate == 0.0:
    return x
  keep = jax.random.bernoulli(module.make_rng('dropout'), 1.0 - rate, x.shape)
  return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
