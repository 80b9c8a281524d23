"""BART (Lewis et al. 2020): post-norm encoder-decoder with learned positions."""

from collections.abc import Mapping, Sequence
from typing import Any

from flaxlm.config.transformer import TransformerConfig
from flaxlm.errors import UserError
from flaxlm.interop import rules
from flaxlm.interop.family import ACTIVATIONS, Family, Field, Head

MARKS = {'marks': 'bart', 'pair_separators': 2}
_SAME = ('attention_heads', 'ffn_dim')


def _extra_ours(config_json: Mapping[str, Any]) -> dict[str, Any]:
  for name in _SAME:
    ours, theirs = (config_json.get(f'{stack}_{name}') for stack in ('encoder', 'decoder'))
    if ours != theirs:
      raise UserError(
        f'config.json: decoder_{name}={theirs!r} is not supported beside encoder_{name}={ours!r}'
      )
  return {}


def _extra_theirs(model: TransformerConfig) -> dict[str, Any]:
  return {
    'decoder_attention_heads': model.num_heads,
    'decoder_ffn_dim': model.mlp_size,
    'num_hidden_layers': model.num_layers,
  }


def _amended(config_json: Mapping[str, Any], tensor_names: Sequence[str]) -> Mapping[str, Any]:
  """config.json with the number of labels that it means where it says none."""
  del tensor_names
  return {'num_labels': 3, **config_json}


def _table(model: TransformerConfig, head: Head, prefix: str) -> list[rules.Entry]:
  del head
  entries: list[rules.Entry] = [
    # transformers ties the stacks' tables to each other only where it ties the output's.
    *rules.shared_vocabulary(model, prefix, write_copies=not model.tie_embeddings),
    rules.Buffer('final_logits_bias', rules.zeros),
    *rules.dense('classification_head.dense', 'head/classes/pooler'),
    *rules.dense('classification_head.out_proj', 'head/classes/out'),
  ]
  for stack in ('encoder', 'decoder'):
    layer, here = f'{prefix}{stack}.layers.{{layer}}', f'trunk/{stack}/layers'
    entries.append(
      rules.Rule(
        f'{prefix}{stack}.embed_positions.weight',
        (f'trunk/{stack}_position/table',),
        rules.Table(),
      )
    )
    entries.append(rules.Kept(f'{prefix}{stack}.version'))  # fairseq's, in the published files
    entries += rules.norm(f'{prefix}{stack}.layernorm_embedding', f'trunk/{stack}_embedding/norm')
    entries += _attention(f'{layer}.self_attn', f'{here}/attention')
    if stack == 'decoder':
      entries += _attention(f'{layer}.encoder_attn', f'{here}/cross_attention')
    entries += rules.dense(f'{layer}.fc1', f'{here}/mlp/up')
    entries += rules.dense(f'{layer}.fc2', f'{here}/mlp/down')
    entries += rules.norm(f'{layer}.final_layer_norm', f'{here}/mlp_norm')
  return entries


def _attention(tensor: str, path: str) -> list[rules.Rule]:
  """Entries of one attention sublayer and its norm."""
  parts = {'q_proj': 'query', 'k_proj': 'key', 'v_proj': 'value', 'out_proj': 'out'}
  entries = rules.norm(f'{tensor}_layer_norm', f'{path}_norm')
  for theirs, ours in parts.items():
    entries += rules.dense(f'{tensor}.{theirs}', f'{path}/{ours}', 2 if ours == 'out' else 1)
  return entries


FAMILY = Family(
  name='bart',
  model='encoder_decoder',
  prefix='model.',
  architectures={
    'BartForConditionalGeneration': Head('denoising', also={'marks': 'bart'}),
    'BartForSequenceClassification': Head(
      'classification', {'pooling': 'last', 'pooler': 'tanh', **MARKS}
    ),
    'BartModel': Head('denoising', trunk_only=True),
  },
  refused={'BartForQuestionAnswering': 'span_qa has no encoder-decoder'},
  fixed={
    'norm': 'layernorm',
    'norm_placement': 'post',
    'norm_eps': 1e-5,
    'embedding_norm': True,
    'use_bias': True,
    'position': 'learned',
    'position_offset': 2,
    'init': 'bert',
  },
  fields=(
    Field('d_model', 'emb_dim'),
    Field('encoder_layers', 'num_layers'),
    Field('decoder_layers', 'num_decoder_layers'),
    Field('encoder_attention_heads', 'num_heads'),
    Field('encoder_ffn_dim', 'mlp_dim'),
    Field('max_position_embeddings', 'max_length', 1024),
    Field('activation_function', 'activation', 'gelu', ACTIVATIONS),
    Field('scale_embedding', 'scale_embeddings', False),
    Field('dropout', 'dropout_rate', 0.1, also=('embedding_dropout_rate',)),
    Field('activation_dropout', 'mlp_dropout_rate', 0.0),
    Field('attention_dropout', 'attention_dropout_rate', 0.0),
    Field('init_std', 'init_std', 0.02),
    Field('tie_word_embeddings', 'tie_embeddings', True),
  ),
  extra_ours=_extra_ours,
  extra_theirs=_extra_theirs,
  required={
    'is_encoder_decoder': (True,),
    'normalize_before': (False,),
    'add_final_layer_norm': (False,),
    'normalize_embedding': (True,),
    'add_bias_logits': (False,),
    'static_position_embeddings': (False,),
  },
  amended=_amended,
  table=_table,
  marks=MARKS,
  start_role='eos',
  start_id=2,
  forced={'forced_bos_token_id': 'bos', 'forced_eos_token_id': 'eos'},
)
