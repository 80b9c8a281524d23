"""ModernBERT (Warner et al. 2024): pre-norm encoder, RoPE, gated GELU, local and global layers."""

from collections.abc import Mapping
from typing import Any

from flaxlm.config.transformer import TransformerConfig
from flaxlm.errors import UserError
from flaxlm.interop import rules
from flaxlm.interop.family import ACTIVATIONS, Family, Field, Head
from flaxlm.interop.mapping import value_of

POOLING = (Field('classifier_pooling', 'pooling', 'cls', {'cls': 'first', 'mean': 'mean'}),)
# What begins the head of masked words begins every other one, too.
TRANSFORM = {'pooler': 'transform'}
# Layer types in config.json, and the base of RoPE in each, if it says nothing.
GLOBAL, LOCAL = 'full_attention', 'sliding_attention'
THETA = {GLOBAL: 160_000.0, LOCAL: 10_000.0}


def _extra_ours(config_json: Mapping[str, Any]) -> dict[str, Any]:
  own = config_json.get('hidden_activation', 'gelu')
  head = config_json.get('classifier_activation', 'gelu')
  if head != own:
    raise UserError(f'config.json: classifier_activation={head!r} is not supported beside {own!r}')
  every = _every(config_json, config_json['num_hidden_layers'])
  return {
    'rope_theta': _theta(config_json, GLOBAL, 'global_rope_theta'),
    'local_rope_theta': _theta(config_json, LOCAL, 'local_rope_theta'),
    'window': value_of(config_json, 'local_attention', int, 128) // 2,
    'global_every': every,
  }


def _every(config_json: Mapping[str, Any], layers: int) -> int:
  """The period of global layers; UserError for another order of layers."""
  default = value_of(config_json, 'global_attn_every_n_layers', int, 3)
  if default < 1:
    raise UserError(f'config.json: global_attn_every_n_layers={default!r} must be 1 or more')
  types = value_of(config_json, 'layer_types', list, None) or _types(layers, default)
  after = [i for i, kind in enumerate(types) if kind == GLOBAL][1:2]
  # With one global layer, the period is any number that reaches beyond the last.
  every = after[0] if after else max(layers, default)
  if every < 2 or types != _types(layers, every):
    raise UserError(f'config.json: layer_types={types!r} are not one global layer in every {every}')
  return every


def _types(layers: int, every: int) -> list[str]:
  return [LOCAL if i % every else GLOBAL for i in range(layers)]


def _theta(config_json: Mapping[str, Any], kind: str, name: str) -> float:
  rope = value_of(config_json, 'rope_parameters', dict, None) or {}
  if wrong := [key for key in rope if key not in THETA]:
    raise UserError(
      f'config.json: rope_parameters.{wrong[0]} is not supported; they are those of '
      f'{", ".join(THETA)}'
    )
  rope = value_of(rope, kind, dict, None) or {}
  found = rope.get('rope_type', 'default')
  if found != 'default' or config_json.get('rope_scaling'):
    raise UserError(f'config.json: rope_type={found!r} is not supported, only `default`')
  theta = value_of(config_json, name, float, THETA[kind])
  return value_of(rope, 'rope_theta', float, theta)


def _extra_theirs(model: TransformerConfig) -> dict[str, Any]:
  if model.window is None or model.global_every < 2 or model.local_rope_theta is None:
    raise UserError(
      'config.model.window: ModernBERT needs window, global_every and local_rope_theta'
    )
  theta = {GLOBAL: model.rope_theta, LOCAL: model.local_rope_theta}
  return {
    'local_attention': 2 * model.window,
    'layer_types': _types(model.num_layers, model.global_every),
    'global_attn_every_n_layers': model.global_every,
    'rope_parameters': {
      kind: {'rope_type': 'default', 'rope_theta': value} for kind, value in theta.items()
    },
    'classifier_activation': next(k for k, v in ACTIVATIONS.items() if v == model.activation),
  }


def _table(model: TransformerConfig, head: Head, prefix: str) -> list[rules.Entry]:
  transform, out = 'head/classes', 'head/classes/out'
  if head.objective == 'span_qa':
    transform, out = 'head', 'head/span'
  elif head.objective == 'masked_lm':
    transform = 'head/mlm'
  vocabulary = rules.Vocabulary(model.vocab_size)
  here, layer = 'trunk/stack/layers', f'{prefix}layers.{{layer}}'
  decoder = 'decoder.weight'
  tied = (decoder,) if model.tie_embeddings else ()
  projections = tuple(f'{here}/attention/{name}/kernel' for name in ('query', 'key', 'value'))
  halves = f'{here}/mlp/up/kernel', f'{here}/mlp/gate/kernel'
  side_by_side = rules.Fused(rules.Kernel(), axis=0)
  emb = f'{prefix}embeddings'
  return [
    rules.Rule(f'{emb}.tok_embeddings.weight', ('trunk/token/table',), vocabulary, copies=tied),
    *rules.norm(f'{emb}.norm', 'trunk/embedding/norm', bias=False),
    # The first layer has none: the embedding is normalised already.
    *rules.norm(
      f'{layer}.attn_norm', 'trunk/stack/layers_from_1/attention_norm', bias=False, first=1
    ),
    rules.Rule(f'{layer}.attn.Wqkv.weight', projections, side_by_side),
    *rules.dense(f'{layer}.attn.Wo', f'{here}/attention/out', inputs=2, bias=False),
    *rules.norm(f'{layer}.mlp_norm', f'{here}/mlp_norm', bias=False),
    rules.Rule(f'{layer}.mlp.Wi.weight', halves, side_by_side),
    *rules.dense(f'{layer}.mlp.Wo', f'{here}/mlp/down', bias=False),
    *rules.norm(f'{prefix}final_norm', 'trunk/final_norm', bias=False),
    *rules.dense('head.dense', f'{transform}/dense', bias=False),
    *rules.norm('head.norm', f'{transform}/norm', bias=False),
    *rules.dense('classifier', out),
    rules.Rule('decoder.bias', ('head/mlm/bias',), vocabulary),
    rules.Rule(decoder, ('head/mlm/table',), vocabulary),
  ]


FAMILY = Family(
  name='modernbert',
  model='encoder',
  prefix='model.',
  architectures={
    'ModernBertForMaskedLM': Head('masked_lm', {'pairs': 'none'}),
    'ModernBertForSequenceClassification': Head('classification', TRANSFORM, fields=POOLING),
    'ModernBertForMultipleChoice': Head('multiple_choice', TRANSFORM, fields=POOLING),
    'ModernBertForTokenClassification': Head('tagging', TRANSFORM),
    'ModernBertForQuestionAnswering': Head('span_qa', TRANSFORM),
    'ModernBertModel': Head('masked_lm', {'pairs': 'none'}, trunk_only=True),
  },
  fixed={
    'norm': 'layernorm',
    'norm_placement': 'pre',
    'embedding_norm': True,
    'first_attention_norm': False,
    'gated_mlp': True,
    'use_bias': False,
    'position': 'rope',
    # Its attention drops its output at `attention_dropout`, its MLP none; here both have one rate.
    'dropout_rate': 0.0,
    'init': 'bert',
  },
  fields=(
    Field('hidden_size', 'emb_dim'),
    Field('num_hidden_layers', 'num_layers'),
    Field('num_attention_heads', 'num_heads'),
    Field('intermediate_size', 'mlp_dim'),
    Field('max_position_embeddings', 'max_length', 8192),
    Field('norm_eps', 'norm_eps', 1e-5),
    Field('hidden_activation', 'activation', 'gelu', ACTIVATIONS),
    Field('mlp_dropout', 'mlp_dropout_rate', 0.0),
    Field('embedding_dropout', 'embedding_dropout_rate', 0.0),
    Field('attention_dropout', 'attention_dropout_rate', 0.0),
    Field('initializer_range', 'init_std', 0.02),
    Field('tie_word_embeddings', 'tie_embeddings', True),
  ),
  extra_ours=_extra_ours,
  extra_theirs=_extra_theirs,
  required={
    'norm_bias': (False,),
    'attention_bias': (False,),
    'mlp_bias': (False,),
    'classifier_bias': (False,),
    'decoder_bias': (True,),
  },
  table=_table,
)
