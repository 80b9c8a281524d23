"""The config of every transformer trunk. One object, passed whole from the recipe to the block."""

import dataclasses

from flaxlm.config.field import SET, Named, field, nearest_divisor
from flaxlm.errors import UserError

POSITIONS = ('none', 'learned', 'sinusoidal', 'rope', 't5_bias', 'alibi', 'transformer_xl')
RATE = {'low': 0.0, 'below': 1.0}
ROPE = {'position': ('rope',)}
# From the most memory to the least; from the least work to the most.
REMAT = ('none', 'dots_and_attention', 'dots', 'attention', 'context', 'full', 'offload')
ALL_SUBLAYERS = ('attention', 'cross_attention', 'mlp')
# The trunks that are made of `models/block.py`.
BLOCKS = {'name': ('encoder', 'decoder', 'encoder_decoder', 'xlnet')}
LLAMA3 = ROPE | {'rope_scaling': ('llama3',)}
YARN = ROPE | {'rope_scaling': ('yarn',)}


@dataclasses.dataclass(frozen=True)
class TransformerConfig(Named):
  """Sizes, the block's variants, initialisation, and how the layers are run."""

  num_layers: int = field(4, 'layers; of the encoder where there are two stacks', low=1)
  num_decoder_layers: int | None = field(
    None, 'layers of the decoder; num_layers if unset', low=1, when={'name': ('encoder_decoder',)}
  )
  emb_dim: int = field(256, 'width D of the residual stream', low=1)
  num_heads: int = field(4, 'query heads H', low=1)
  num_kv_heads: int | None = field(None, 'key and value heads; num_heads if unset', low=1)
  head_dim: int | None = field(None, 'size K of a head; emb_dim / num_heads if unset', low=1)
  mlp_dim: int | None = field(None, 'width of the MLP; 4 * emb_dim if unset', low=1)
  max_length: int = field(256, 'longest sequence, in tokens', low=1)
  token_types: int = field(0, 'rows of the token-type (segment A/B) table; 0 for none', low=0)

  norm: str = field('layernorm', 'kind of normalisation', choices=('layernorm', 'rmsnorm'))
  norm_placement: str = field('pre', 'before or after each sublayer', choices=('pre', 'post'))
  norm_eps: float = field(1e-5, 'added to the variance', above=0.0)
  embedding_norm: bool = field(False, 'normalise the summed embeddings (BERT)')
  first_attention_norm: bool = field(
    True,
    'whether layer 0 normalises the input of its attention; ModernBERT, whose embedding is '
    'normalised, does not',
    when={'norm_placement': ('pre',)},
  )
  qk_norm: bool = field(False, "RMSNorm of each head's queries and keys, before RoPE")
  activation: str = field(
    'gelu_tanh', 'nonlinearity of the MLP', choices=('gelu', 'gelu_tanh', 'relu', 'silu')
  )
  gated_mlp: bool = field(False, 'multiply the activation by a second projection (GLU)')
  use_bias: bool = field(True, 'biases in projections and LayerNorm')
  attention_bias: bool | None = field(
    None, 'biases in the projections of attention; use_bias if unset'
  )
  mlp_bias: bool | None = field(None, 'biases in the projections of the MLP; use_bias if unset')
  tie_embeddings: bool = field(True, 'the vocabulary head multiplies by the token embedding')
  scale_embeddings: bool = field(False, 'multiply token embeddings by sqrt(D)')
  scale_tied_logits: bool = field(
    False, 'multiply tied logits by 1/sqrt(D) (T5 1.0)', when={'tie_embeddings': (True,)}
  )
  scale_attention: bool = field(True, 'divide attention scores by sqrt(K); T5 does not')
  attention_softcap: float = field(
    0.0, 'cap c of attention scores, c * tanh(x / c); 0: none', low=0.0
  )
  logit_softcap: float = field(
    0.0, 'cap c of the logits over the vocabulary, c * tanh(x / c); 0: none', low=0.0
  )

  window: int | None = field(
    None, 'greatest distance |i - j| at which local layers attend; unset: all are global', low=1
  )
  global_every: int = field(
    0, 'layer i is global where this divides i; 0: none is', low=0, when={'window': (SET,)}
  )

  position: str = field('learned', 'position scheme', choices=POSITIONS)
  position_offset: int = field(
    0,
    'rows of the learned table before that of position 0, which nothing reads; 2 in RoBERTa, BART',
    low=0,
    when={'position': ('learned',)},
  )
  rope_theta: float = field(1e4, 'base of the RoPE wavelengths', above=1.0, when=ROPE)
  local_rope_theta: float | None = field(
    None,
    'base in local layers, which are then not scaled; as in global ones if unset',
    above=1.0,
    when=ROPE | {'window': (SET,)},
  )
  rope_scaling: str = field(
    'none',
    'how RoPE reaches beyond the trained length: all angles divided (linear), or those of the '
    'long wavelengths (llama3; yarn, which also sharpens attention)',
    choices=('none', 'linear', 'llama3', 'yarn'),
    when=ROPE,
  )
  rope_factor: float = field(
    8.0,
    'what RoPE angles are divided by',
    low=1.0,
    when=ROPE | {'rope_scaling': ('linear', 'llama3', 'yarn')},
  )
  rope_low_freq_factor: float = field(
    1.0,
    'wavelengths beyond rope_original_length / this are divided in full',
    above=0.0,
    when=LLAMA3,
  )
  rope_high_freq_factor: float = field(
    4.0, 'wavelengths below rope_original_length / this are left alone', above=0.0, when=LLAMA3
  )
  rope_original_length: int = field(
    8192,
    'length that was trained before scaling',
    low=1,
    when=ROPE | {'rope_scaling': ('llama3', 'yarn')},
  )
  rope_beta_fast: float = field(
    32.0, 'wavelengths with more turns in rope_original_length are left alone', above=0.0, when=YARN
  )
  rope_beta_slow: float = field(
    1.0, 'wavelengths with fewer turns are divided in full', above=0.0, when=YARN
  )
  rope_attention_factor: float | None = field(
    None,
    'what rotated queries and keys are multiplied by; 0.1 ln(rope_factor) + 1 if unset',
    above=0.0,
    when=YARN,
  )
  relative_buckets: int = field(
    32, 'buckets of the T5 bias; half for each direction', low=4, when={'position': ('t5_bias',)}
  )
  relative_max_distance: int = field(
    128, 'distance from which T5 buckets are shared', low=8, when={'position': ('t5_bias',)}
  )

  dropout_rate: float = field(0.0, 'dropout of each sublayer output', **RATE)
  mlp_dropout_rate: float | None = field(
    None,
    'dropout inside the MLP, after its activation; dropout_rate if unset; BERT, GPT-2 have none',
    **RATE,
  )
  embedding_dropout_rate: float = field(0.0, 'dropout of the summed embeddings', **RATE)
  attention_dropout_rate: float = field(0.0, 'dropout of attention probabilities', **RATE)
  layer_drop_rate: float = field(
    0.0, 'stochastic depth: chance to skip a sublayer of the last layer, rising linearly', **RATE
  )

  adapter_dim: int = field(
    0, 'units of bottleneck adapters behind sublayers; 0: none', low=0, when=BLOCKS
  )
  adapter_placement: str = field(
    'houlsby',
    'behind every sublayer (houlsby), or behind the MLP only (pfeiffer)',
    choices=('houlsby', 'pfeiffer'),
    when=BLOCKS | {'adapter_dim': (SET,)},
  )

  init: str = field('gpt2', 'initialisation scheme', choices=('gpt2', 'bert', 't5'))
  init_std: float = field(
    0.02, 'standard deviation of kernels', above=0.0, when={'init': ('gpt2', 'bert')}
  )

  attention_kernel: str = field(
    'auto',
    'what computes self-attention: plain products; kernels that never hold the scores, `splash` '
    'on TPU and `cudnn` on GPU; `auto`: the kernel of the device wherever it can serve the model',
    choices=('auto', 'plain', 'splash', 'cudnn'),
    when={'name': ('encoder', 'decoder', 'encoder_decoder')},
  )
  remat: str = field(
    'none', 'what the backward pass keeps of each layer (layers/remat.py)', choices=REMAT
  )
  scan_layers: bool = field(False, 'run the layers as one compiled loop: compiles faster')

  vocab_size: int = field(0, 'from the tokenizer', derived=True)
  precision: str = field('float32', "from the experiment's `precision`", derived=True)

  @property
  def kv_heads(self) -> int:
    return self.num_kv_heads or self.num_heads

  @property
  def head_size(self) -> int:
    return self.head_dim or self.emb_dim // self.num_heads

  @property
  def mlp_size(self) -> int:
    return self.mlp_dim or 4 * self.emb_dim

  @property
  def attention_biases(self) -> bool:
    return self.use_bias if self.attention_bias is None else self.attention_bias

  @property
  def mlp_biases(self) -> bool:
    return self.use_bias if self.mlp_bias is None else self.mlp_bias

  @property
  def mlp_dropout(self) -> float:
    return self.dropout_rate if self.mlp_dropout_rate is None else self.mlp_dropout_rate

  @property
  def decoder_layers(self) -> int:
    return self.num_decoder_layers or self.num_layers

  @property
  def adapted(self) -> tuple[str, ...]:
    """Names of the sublayers that have an adapter behind them."""
    if not self.adapter_dim:
      return ()
    return ('mlp',) if self.adapter_placement == 'pfeiffer' else ALL_SUBLAYERS

  def is_local(self, layer: int) -> bool:
    """Whether the layer attends within `window` only."""
    if self.window is None:
      return False
    return not self.global_every or layer % self.global_every != 0

  @property
  def pattern(self) -> int:
    """Layers after which local and global ones repeat."""
    return max(self.global_every, 1) if self.window is not None else 1

  @property
  def bare_first_layer(self) -> bool:
    """Whether layer 0 has no norm before its attention."""
    return self.norm_placement == 'pre' and not self.first_attention_norm

  @property
  def table_size(self) -> int:
    """Rows of the stored vocabulary table: vocab_size padded to a multiple of 128."""
    return -(-self.vocab_size // 128) * 128

  def check(self) -> None:
    """Raises UserError, relative to this node, for values that cannot go together."""
    if self.head_dim is None and self.emb_dim % self.num_heads:
      raise UserError(
        f'num_heads: {self.num_heads} heads do not divide emb_dim={self.emb_dim}; the nearest '
        f'number that does is {nearest_divisor(self.emb_dim, self.num_heads)} (or set head_dim)'
      )
    if self.num_heads % self.kv_heads:
      raise UserError(
        f'num_kv_heads: {self.kv_heads} does not divide num_heads={self.num_heads}; the nearest '
        f'number that does is {nearest_divisor(self.num_heads, self.kv_heads)}'
      )
    if self.position == 'rope' and self.head_size % 2:
      raise UserError(f'head_dim: RoPE needs an even head size, got {self.head_size}')
    if self.position in ('sinusoidal', 'transformer_xl') and self.emb_dim % 2:
      raise UserError(f'emb_dim: {self.position} positions need an even width, got {self.emb_dim}')
    if self.position == 't5_bias' and self.relative_buckets % 4:
      raise UserError(f'relative_buckets: must be a multiple of 4, got {self.relative_buckets}')
    if self.window is not None and self.global_every == 1:
      raise UserError('global_every: 1 makes every layer global, so that window would do nothing')
    if self.rope_beta_slow >= self.rope_beta_fast:
      raise UserError(
        f'rope_beta_slow: must be below rope_beta_fast={self.rope_beta_fast}, '
        f'got {self.rope_beta_slow}'
      )
    if self.rope_low_freq_factor >= self.rope_high_freq_factor:
      raise UserError(
        f'rope_low_freq_factor: must be below rope_high_freq_factor={self.rope_high_freq_factor}, '
        f'got {self.rope_low_freq_factor}'
      )
