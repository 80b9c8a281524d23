"""Self-attention by kernels that never hold the scores: splash attention on TPU, cuDNN on GPU.

Both give what `Attention` computes by itself, which is their reference in the tests, for rows of
packed segments, causal or not, within a window or not. What they lack is told by `lacks`.
"""

import flax.struct
import jax
import jax.numpy as jnp

from flaxlm import sharding
from flaxlm.config.transformer import TransformerConfig
from flaxlm.errors import UserError
from flaxlm.layers import remat

# The lanes of a TPU's vector registers: lengths are filled up to multiples of it. Head sizes need
# not be, and filling them up doubles the products of heads of 64.
_LANES = 128
# Rows and columns of scores that splash attention computes at a time, largest first.
_BLOCKS = (512, 384, 256, 128)
_OF_PLATFORM = {'tpu': 'splash', 'gpu': 'cudnn'}


@flax.struct.dataclass
class Pattern:
  """Who sees whom in rows [B, L]: tokens of a segment each other, or what precedes them."""

  segment_ids: jax.Array
  causal: bool = flax.struct.field(pytree_node=False)


def lacks(config: TransformerConfig, name: str) -> str:
  """The field of a config that the kernel `name` cannot serve, with its value; '' if it can all."""
  if config.position in ('t5_bias', 'alibi', 'transformer_xl'):
    return f'position={config.position}'
  if name == 'cudnn' and config.attention_softcap:
    return f'attention_softcap={config.attention_softcap}'
  if name == 'cudnn' and config.precision != 'bfloat16':
    return f'precision={config.precision}'
  if name == 'cudnn' and (config.head_size % 8 or config.head_size > 128):
    return f'a head size of {config.head_size}'
  return ''


def chosen(config: TransformerConfig, deterministic: bool) -> str:
  """The kernel for the devices at hand: 'splash', 'cudnn' or 'plain'.

  Raises UserError if the config asks for a kernel that it cannot have. Dropout of attention
  probabilities, which neither kernel has, is plain in training and may be fused in evaluation.
  """
  name = config.attention_kernel
  dropped = config.attention_dropout_rate > 0 and not deterministic
  if name == 'auto':
    name = _OF_PLATFORM.get(sharding.platform(), 'plain')
    return 'plain' if name == 'plain' or dropped or lacks(config, name) else name
  if name == 'plain':
    return name
  problem = lacks(config, name)
  if config.attention_dropout_rate > 0:
    problem = f'attention_dropout_rate={config.attention_dropout_rate}'
  if problem:
    raise UserError(f'config.model.attention_kernel: {name!r} cannot serve {problem}; set auto')
  if name == 'cudnn' and sharding.platform() != 'gpu':
    raise UserError(
      f"config.model.attention_kernel: 'cudnn' is for GPUs, not for {sharding.platform()}; set auto"
    )
  return name


def attend(
  config: TransformerConfig,
  name: str,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  pattern: Pattern,
  mask: jax.Array,
  window: int | None,
) -> jax.Array:
  """Scaled q [B, L, H, K]; k, v [B, Hkv, L, K]; mask bool [B, 1, L, L] -> [B, L, H, K].

  Where every key is of another segment than its query, only at padding, the result is arbitrary.
  """
  if not sharding.divided_alike('heads', 'kv_heads'):
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[1], axis=1) for x in (k, v))
  if name == 'cudnn':
    k, v = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
    mask = jnp.broadcast_to(mask, (q.shape[0], 1, *mask.shape[2:]))
    names = ('batch', '', 'heads')
    run = sharding.on_shards(_cudnn, [names, names, names, ('batch',)], names)
    return run(q, k, v, mask)
  names = ('batch', 'heads')
  own = lambda *args: _splash(*args, pattern.causal, window, config.attention_softcap)
  run = sharding.on_shards(own, [names, names, names, ('batch',)], names)
  return jnp.moveaxis(run(jnp.moveaxis(q, 2, 1), k, v, pattern.segment_ids), 1, 2)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
  """q [B, L, H, K]; k, v [B, L, Hkv, K] -> [B, L, H, K]."""
  return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=1.0, implementation='cudnn')


def _splash(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  segment_ids: jax.Array,
  causal: bool,
  window: int | None,
  softcap: float,
) -> jax.Array:
  """q [B, H, L, K], k, v [B, Hkv, L, K] -> [B, H, L, K]. Interpreted where there is no TPU."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  length = q.shape[2]
  more = -length % _LANES
  # Filled up with tokens of segment 0, which no other token sees.
  fill = lambda x: jnp.pad(x, [(0, 0), (0, 0), (0, more), (0, 0)])
  segment_ids = jnp.pad(segment_ids, [(0, 0), (0, more)])
  whole = length + more
  if window is not None:
    mask = splash.LocalMask((whole, whole), (window, 0 if causal else window), 0)
  else:
    mask = (splash.CausalMask if causal else splash.FullMask)((whole, whole))
  block = next(size for size in _BLOCKS if whole % size == 0)
  kernel = splash.make_splash_mha(
    splash.MultiHeadMask([mask] * q.shape[1]),
    block_sizes=splash.BlockSizes(
      *(block, block, block),
      block_q_dkv=block,
      block_kv_dkv=block,
      block_kv_dkv_compute=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    attn_logits_soft_cap=softcap or None,
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=remat.CONTEXT,
    interpret=sharding.platform() != 'tpu',
  )
  one = lambda q, k, v, ids: kernel(q, k, v, segment_ids=splash.SegmentIds(ids, ids))
  return jax.vmap(one)(fill(q), fill(k), fill(v), segment_ids)[:, :, :length]
