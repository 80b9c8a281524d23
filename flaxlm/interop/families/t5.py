"""T5 1.0 and 1.1 (Raffel et al. 2020): encoder-decoder with a bias by distance."""

from collections.abc import Mapping, Sequence
from typing import Any

from flaxlm.config.transformer import TransformerConfig
from flaxlm.errors import UserError
from flaxlm.interop import rules
from flaxlm.interop.family import Family, Field, Head
from flaxlm.interop.mapping import value_of

# (activation, gated) of feed_forward_proj. Plain T5 says `gelu` and means the exact one, gated T5
# says it and means the approximation by tanh.
PROJECTIONS = {
  'relu': ('relu', False),
  'gated-gelu': ('gelu_tanh', True),
  'gelu': ('gelu', False),
  'gelu_new': ('gelu_tanh', False),
  'silu': ('silu', False),
  'gated-relu': ('relu', True),
  'gated-silu': ('silu', True),
}
# What `dense_act_fn`, which repeats it, calls these activations.
DENSE = {'relu': 'relu', 'gelu': 'gelu', 'gelu_tanh': 'gelu_new', 'silu': 'silu'}


def _extra_ours(config_json: Mapping[str, Any]) -> dict[str, Any]:
  name = value_of(config_json, 'feed_forward_proj', str, 'relu')
  if name not in PROJECTIONS:
    raise UserError(
      f'config.json: feed_forward_proj={name!r} is not supported; those that are: '
      f'{", ".join(PROJECTIONS)}'
    )
  activation, gated = PROJECTIONS[name]
  for key, expected in (('dense_act_fn', DENSE[activation]), ('is_gated_act', gated)):
    if config_json.get(key, expected) not in (expected, None):
      raise UserError(
        f'config.json: {key}={config_json[key]!r} is not supported beside '
        f'feed_forward_proj={name!r}, which means {expected!r}'
      )
  # Files of old releases say by `tie_word_embeddings` both whether tables are tied and whether
  # logits are scaled; those of new ones always say that they are tied.
  tied = value_of(config_json, 'tie_word_embeddings', bool, True)
  scaled = value_of(config_json, 'scale_decoder_outputs', bool, tied)
  values = {'activation': activation, 'gated_mlp': gated, 'tie_embeddings': tied}
  return values | ({'scale_tied_logits': scaled} if tied else {})


def _extra_theirs(model: TransformerConfig) -> dict[str, Any]:
  found = [n for n, value in PROJECTIONS.items() if value == (model.activation, model.gated_mlp)]
  if not found:
    raise UserError(f'config.model.activation: T5 has no gated {model.activation!r}')
  return {
    'feed_forward_proj': found[0],
    'tie_word_embeddings': model.tie_embeddings,
    'scale_decoder_outputs': model.tie_embeddings and model.scale_tied_logits,
  }


def _amended(config_json: Mapping[str, Any], tensor_names: Sequence[str]) -> Mapping[str, Any]:
  """config.json with what the tensors say: new releases write `tied` whatever the tables are."""
  head = 'lm_head.weight'
  if head not in tensor_names or config_json.get('scale_decoder_outputs', True):
    return config_json
  return {**config_json, 'tie_word_embeddings': False}


def _table(model: TransformerConfig, head: Head, prefix: str) -> list[rules.Entry]:
  del head
  entries: list[rules.Entry] = [
    *rules.shared_vocabulary(model, prefix),
    *rules.dense('classification_head.dense', 'head/classes/pooler'),
    *rules.dense('classification_head.out_proj', 'head/classes/out'),
    # The first release has this table in the cross-attention, and does not use it.
    rules.Kept(f'{prefix}decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'),
  ]
  for stack, sublayers in (
    ('encoder', ('SelfAttention', 'DenseReluDense')),
    ('decoder', ('SelfAttention', 'EncDecAttention', 'DenseReluDense')),
  ):
    entries.append(
      rules.Rule(
        f'{prefix}{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
        (f'trunk/{stack}_position/table',),
        rules.Table(),
      )
    )
    entries += rules.norm(f'{prefix}{stack}.final_layer_norm', f'trunk/{stack}_norm', bias=False)
    for number, name in enumerate(sublayers):
      tensor = f'{prefix}{stack}.block.{{layer}}.layer.{number}'
      entries += _sublayer(tensor, name, f'trunk/{stack}/layers', model.gated_mlp)
  return entries


def _sublayer(tensor: str, name: str, here: str, gated: bool) -> list[rules.Rule]:
  """Entries of one sublayer and its norm."""
  path = {
    'SelfAttention': 'attention',
    'EncDecAttention': 'cross_attention',
    'DenseReluDense': 'mlp',
  }[name]
  if path == 'mlp':
    parts = {'wi_0': 'up', 'wi_1': 'gate'} if gated else {'wi': 'up'}
    parts |= {'wo': 'down'}
  else:
    parts = {'q': 'query', 'k': 'key', 'v': 'value', 'o': 'out'}
  entries = rules.norm(f'{tensor}.layer_norm', f'{here}/{path}_norm', bias=False)
  for theirs, ours in parts.items():
    inputs = 2 if ours == 'out' else 1
    entries += rules.dense(f'{tensor}.{name}.{theirs}', f'{here}/{path}/{ours}', inputs, bias=False)
  return entries


FAMILY = Family(
  name='t5',
  model='encoder_decoder',
  prefix='',
  architectures={
    'T5ForConditionalGeneration': Head('span_corruption', also={'marks': 't5'}),
    'T5ForSequenceClassification': Head(
      'classification', {'pooling': 'last', 'pooler': 'tanh', 'marks': 't5'}, prefix='transformer.'
    ),
    'T5Model': Head('span_corruption', trunk_only=True),
  },
  refused={
    'T5ForTokenClassification': 'it is an encoder alone; tagging has no encoder-decoder',
    'T5ForQuestionAnswering': 'span_qa has no encoder-decoder',
  },
  fixed={
    'norm': 'rmsnorm',
    'norm_placement': 'pre',
    'use_bias': False,
    'position': 't5_bias',
    'scale_attention': False,
    'init': 't5',
  },
  fields=(
    Field('d_model', 'emb_dim'),
    Field('num_layers', 'num_layers'),
    Field('num_decoder_layers', 'num_decoder_layers', None),
    Field('num_heads', 'num_heads'),
    Field('d_kv', 'head_dim'),
    Field('d_ff', 'mlp_dim'),
    Field('relative_attention_num_buckets', 'relative_buckets', 32),
    Field('relative_attention_max_distance', 'relative_max_distance', 128),
    Field('layer_norm_epsilon', 'norm_eps', 1e-6),
    Field(
      'dropout_rate',
      'dropout_rate',
      0.1,
      also=('mlp_dropout_rate', 'embedding_dropout_rate', 'attention_dropout_rate'),
    ),
    # Any length is read; this is what it was trained on, and what files of old releases say.
    Field('n_positions', 'max_length', 512),
  ),
  extra_ours=_extra_ours,
  extra_theirs=_extra_theirs,
  required={'is_encoder_decoder': (True,)},
  amended=_amended,
  table=_table,
  start_role='bos',
  start_id=0,
)
