"""Floating-point operations of a training step, by formula.

Counted are the products (2 operations a multiply-add) of the forward pass, times 3 for the backward
pass, over every place of the batch, padding included, and over all pairs of places in attention,
masked or not; the lookups, norms and softmaxes are not. Recomputation by remat is not counted:
these are the model's operations, not the machine's (Chowdhery et al. 2022, appendix B). All
parameters count as trained: frozen ones take down to a third of it.
"""

from collections.abc import Mapping

from flaxlm.config.transformer import TransformerConfig


def train_step_flops(
  config: TransformerConfig, shapes: Mapping[str, tuple[int, ...]], head_transform: bool = False
) -> float:
  """Operations of one step.

  Args:
    config: of the trunk.
    shapes: of the batch: inputs, or encoder_inputs and decoder_inputs, [B, L]; targets [B, T] of a
      vocabulary head, if there is one.
    head_transform: whether the head has a dense layer of its own (BERT's).
  """
  if 'encoder_inputs' in shapes:
    (rows, length), (_, target) = shapes['encoder_inputs'], shapes['decoder_inputs']
    forward = config.num_layers * _layer(config, rows, length, length)
    forward += config.decoder_layers * _layer(config, rows, target, target, memory=length)
  else:
    rows, keys = shapes['inputs']
    queries = keys
    if 'order' in shapes:  # Two streams, and the memory before the first.
      queries += shapes['target_positions'][1]
      keys += config.memory_length if 'continues' in shapes else 0
    forward = config.num_layers * _layer(config, rows, queries, keys)
  rows, targets = shapes.get('targets', (0, 0))
  head = config.table_size + (config.emb_dim if head_transform else 0)
  forward += rows * targets * config.emb_dim * head
  return 2.0 * 3.0 * forward


def _layer(config: TransformerConfig, rows: int, queries: int, keys: int, memory: int = 0) -> float:
  """Multiply-adds of one layer, attending also to `memory` places of an encoder."""
  attention = _attention(config, queries, keys)
  if memory:
    attention += _attention(config, queries, memory)
  matrices = 3 if config.gated_mlp else 2
  sublayers = ('attention', 'mlp', 'cross_attention') if memory else ('attention', 'mlp')
  adapters = 2 * sum(name in config.adapted for name in sublayers)
  widths = matrices * config.mlp_size + adapters * config.adapter_dim
  layer = rows * (attention + queries * widths * config.emb_dim)
  if config.position == 'transformer_xl':
    # Distances are projected once for all rows, and each query meets all of them.
    width, distances = config.num_heads * config.head_size, 2 * keys - 1
    layer += distances * width * (config.emb_dim + rows * queries)
  return layer


def _attention(config: TransformerConfig, queries: int, keys: int) -> float:
  width = config.num_heads * config.head_size
  projections = 2 * queries * width + 2 * keys * config.kv_heads * config.head_size
  return config.emb_dim * projections + 2 * queries * keys * width
