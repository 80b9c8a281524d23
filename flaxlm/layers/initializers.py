"""Initialisation of each kind of leaf under each paper's scheme.

gpt2: normal(init_std), as in GPT (Radford et al. 2018, section 4.1); projections into the residual
stream divided by sqrt(2 * layers) (Radford et al. 2019, section 2.3). GPT-2's released code halves
that of the position table, with which small models learn more slowly; not so here.
bert: normal truncated at two standard deviations (Devlin et al. 2019, released model code).
t5: embeddings normal(1), projections scaled by their fan-in, queries also by 1/sqrt(K) because the
scores are not divided by it (Raffel et al. 2020, released model code).
"""

from collections.abc import Callable

import jax
from jax.nn.initializers import normal, truncated_normal

from flaxlm.config.transformer import TransformerConfig

Initializer = Callable[..., jax.Array]


def kernel(config: TransformerConfig, fan_in: int, kind: str = 'projection') -> Initializer:
  """Initializer of a kernel with `fan_in` inputs to each output.

  kind: 'projection'; 'query'; 'residual' (its output is added to the residual stream); 'logits'.
  """
  if config.init == 't5':
    scale = fan_in * config.head_size if kind == 'query' else fan_in
    return normal(scale**-0.5)
  if config.init == 'bert':
    return truncated_normal(config.init_std)
  if kind == 'residual':
    return normal(config.init_std / (2 * config.num_layers) ** 0.5)
  return normal(config.init_std)


def table(config: TransformerConfig, kind: str = 'token') -> Initializer:
  """Initializer of an embedding table. kind: 'token' (also types and positions) or 'relative'."""
  if config.init == 't5':
    return normal(config.emb_dim**-0.5 if kind == 'relative' else 1.0)
  if config.init == 'bert':
    return truncated_normal(config.init_std)
  return normal(config.init_std)
