"""Llama (Touvron et al. 2023): pre-norm decoder with RMSNorm, RoPE, gated SiLU, grouped keys."""

from collections.abc import Mapping
from typing import Any

from flaxlm.config.transformer import TransformerConfig
from flaxlm.errors import UserError
from flaxlm.interop import rules
from flaxlm.interop.family import (
  ACTIVATIONS,
  DECODER_CLASSES,
  DECODER_SPANS,
  EACH_TOKEN,
  Family,
  Field,
  Head,
)
from flaxlm.interop.mapping import value_of

_LENGTH = 'original_max_position_embeddings'
# Further RoPE fields under each kind of scaling, and their values where config.json lacks them.
# `dynamic` is not among them: its angles depend on the length of the text at hand, so that tokens
# in a cache would have been rotated by other angles than those of the same text read at once.
SCALED = {
  'factor': 'rope_factor',
  _LENGTH: 'rope_original_length',
  'low_freq_factor': 'rope_low_freq_factor',
  'high_freq_factor': 'rope_high_freq_factor',
  'beta_fast': 'rope_beta_fast',
  'beta_slow': 'rope_beta_slow',
  'attention_factor': 'rope_attention_factor',
}
SCALINGS = {
  'default': (),
  'linear': ('factor',),
  'llama3': tuple(SCALED)[:4],
  'yarn': (*tuple(SCALED)[:2], *tuple(SCALED)[4:]),
}
DEFAULTS = {'beta_fast': 32.0, 'beta_slow': 1.0, 'attention_factor': None}


def _extra_ours(config_json: Mapping[str, Any]) -> dict[str, Any]:
  rope = value_of(config_json, 'rope_parameters', dict, None)
  older = value_of(config_json, 'rope_scaling', dict, None)
  if rope and older and rope != older:
    raise UserError('config.json: rope_parameters and rope_scaling differ; keep one of them')
  rope = rope or older or {}
  kind = value_of(rope, 'rope_type', str, value_of(rope, 'type', str, 'default'))
  if kind not in SCALINGS:
    raise UserError(
      f'config.json: rope_type={kind!r} is not supported; those that are: {", ".join(SCALINGS)}'
    )
  if any(isinstance(value, dict) for value in rope.values()):
    raise UserError('config.json: rope_parameters of each kind of layer are not supported')
  part = value_of(config_json, 'partial_rotary_factor', float, 1.0)
  if value_of(rope, 'partial_rotary_factor', float, part) != 1:
    raise UserError('config.json: partial_rotary_factor is not supported, only 1')
  theta = value_of(config_json, 'rope_theta', float, 10_000.0)
  theta = value_of(rope, 'rope_theta', float, theta)
  values = {'rope_theta': theta, 'rope_scaling': 'none' if kind == 'default' else kind}
  for name in SCALINGS[kind]:
    value = rope.get(name, DEFAULTS.get(name))
    if value is None and name not in DEFAULTS:
      raise UserError(f'config.json: rope_type={kind!r} needs {name}')
    values[SCALED[name]] = value if value is not None else DEFAULTS[name]
  length = value_of(config_json, _LENGTH, int, None)
  if _LENGTH in SCALINGS[kind] and length not in (None, rope[_LENGTH]):
    raise UserError(f'config.json: {_LENGTH} is {length}, and {rope[_LENGTH]} of {kind!r}')
  if kind == 'yarn':
    _check_yarn(rope)
  return values


def _check_yarn(rope: Mapping[str, Any]) -> None:
  """UserError for variants of the scaling that are not there."""
  for name in ('mscale', 'mscale_all_dim'):
    if rope.get(name) and rope.get('attention_factor') is None:
      raise UserError(f'config.json: {name}={rope[name]!r} is not supported; give attention_factor')
  if not rope.get('truncate', True):
    raise UserError('config.json: truncate=False is not supported')


def _extra_theirs(model: TransformerConfig) -> dict[str, Any]:
  kind = 'default' if model.rope_scaling == 'none' else model.rope_scaling
  rope = {'rope_type': kind, 'rope_theta': model.rope_theta}
  more = {name: getattr(model, SCALED[name]) for name in SCALINGS[kind]}
  return {'rope_parameters': rope | {k: v for k, v in more.items() if v is not None}}


def _table(model: TransformerConfig, head: Head, prefix: str) -> list[rules.Entry]:
  del head
  vocabulary = rules.Vocabulary(model.vocab_size)
  here, layer = 'trunk/stack/layers', f'{prefix}layers.{{layer}}'
  tied = ('lm_head.weight',) if model.tie_embeddings else ()
  entries: list[rules.Entry] = [
    rules.Rule(f'{prefix}embed_tokens.weight', ('trunk/token/table',), vocabulary, copies=tied),
    *rules.norm(f'{layer}.input_layernorm', f'{here}/attention_norm', bias=False),
    *rules.norm(f'{layer}.post_attention_layernorm', f'{here}/mlp_norm', bias=False),
    *rules.norm(f'{prefix}norm', 'trunk/final_norm', bias=False),
    rules.Rule('lm_head.weight', ('head/vocab/table',), vocabulary),
    *rules.dense('score', 'head/classes/out'),
    # Files of early releases hold the wavelengths, which follow from config.json.
    rules.Kept(f'{layer}.self_attn.rotary_emb.inv_freq'),
  ]
  for theirs, ours in (
    ('self_attn.q_proj', 'attention/query'),
    ('self_attn.k_proj', 'attention/key'),
    ('self_attn.v_proj', 'attention/value'),
    ('self_attn.o_proj', 'attention/out'),
    ('mlp.gate_proj', 'mlp/up'),
    ('mlp.up_proj', 'mlp/gate'),
    ('mlp.down_proj', 'mlp/down'),
  ):
    inputs = 2 if ours == 'attention/out' else 1
    entries += rules.dense(f'{layer}.{theirs}', f'{here}/{ours}', inputs)
  return entries


FAMILY = Family(
  name='llama',
  model='decoder',
  prefix='model.',
  architectures={
    'LlamaForCausalLM': Head('causal_lm'),
    'LlamaForSequenceClassification': Head(
      'classification', DECODER_CLASSES, reads={'decoder_marks': 'bos'}
    ),
    'LlamaForTokenClassification': Head('tagging', EACH_TOKEN, reads={'decoder_marks': 'bos'}),
    'LlamaModel': Head('causal_lm', trunk_only=True),
  },
  refused={'LlamaForQuestionAnswering': DECODER_SPANS},
  fixed={
    'norm': 'rmsnorm',
    'norm_placement': 'pre',
    'gated_mlp': True,
    'use_bias': False,
    'position': 'rope',
    'init': 'gpt2',
  },
  fields=(
    Field('hidden_size', 'emb_dim'),
    Field('num_hidden_layers', 'num_layers'),
    Field('num_attention_heads', 'num_heads'),
    Field('num_key_value_heads', 'num_kv_heads', None),
    Field('head_dim', 'head_dim', None),
    Field('intermediate_size', 'mlp_dim'),
    Field('max_position_embeddings', 'max_length', 2048),
    Field('rms_norm_eps', 'norm_eps', 1e-6),
    Field('hidden_act', 'activation', 'silu', ACTIVATIONS),
    Field('attention_dropout', 'attention_dropout_rate', 0.0),
    Field('initializer_range', 'init_std', 0.02),
    Field('tie_word_embeddings', 'tie_embeddings', False),
    Field('attention_bias', 'attention_bias', False),
    Field('mlp_bias', 'mlp_bias', False),
  ),
  extra_ours=_extra_ours,
  extra_theirs=_extra_theirs,
  required={},
  table=_table,
)
