"""BART (Lewis et al. 2020): post-norm encoder-decoder with learned positions."""

from flaxlm.errors import UserError
from flaxlm.interop import rules
from flaxlm.interop.mapping import ACTIVATIONS, Field, Head

MODEL = 'encoder_decoder'
PREFIX = 'model.'
ARCHITECTURES = {
  'BartForConditionalGeneration': Head('denoising', also={'marks': 'bart'}),
  'BartForSequenceClassification': Head(
    'classification',
    {'pooling': 'last', 'pooler': 'tanh', 'marks': 'bart', 'pair_separators': 2},
  ),
  'BartModel': Head('denoising', trunk_only=True),
}
REFUSED = {'BartForQuestionAnswering': 'span_qa has no encoder-decoder'}
# What the decoder starts with: the role of the token, and its id where config.json does not say it.
START_ROLE, START = 'eos', 2
# What the public decoder writes first and, at the greatest length, last.
FORCED = {'forced_bos_token_id': 'bos', 'forced_eos_token_id': 'eos'}
FIXED = {
  'norm': 'layernorm',
  'norm_placement': 'post',
  'norm_eps': 1e-5,
  'embedding_norm': True,
  'use_bias': True,
  'position': 'learned',
  'position_offset': 2,
  'init': 'bert',
}
FIELDS = (
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
)
REQUIRED = {
  'is_encoder_decoder': (True,),
  'normalize_before': (False,),
  'add_final_layer_norm': (False,),
  'normalize_embedding': (True,),
  'add_bias_logits': (False,),
  'static_position_embeddings': (False,),
}
_SAME = ('attention_heads', 'ffn_dim')


def special(config_json):
  for name in _SAME:
    ours, theirs = (config_json.get(f'{stack}_{name}') for stack in ('encoder', 'decoder'))
    if ours != theirs:
      raise UserError(
        f'config.json: decoder_{name}={theirs!r} is not supported beside encoder_{name}={ours!r}'
      )
  return {}


def unspecial(model):
  return {
    'decoder_attention_heads': model.num_heads,
    'decoder_ffn_dim': model.mlp_size,
    'num_hidden_layers': model.num_layers,
  }


def settle(config_json, tensors):
  """config.json with the number of labels that it means where it says none."""
  del tensors
  return {'num_labels': 3, **config_json}


def table(model, head, prefix):
  """Entries of a model with `head`; `prefix` is that of the trunk's tensors."""
  del head
  entries = [
    # transformers ties the stacks' tables to each other only where it ties the output's.
    *rules.shared_vocabulary(model, prefix, each=not model.tie_embeddings),
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


def _attention(tensor, path):
  """Entries of one attention sublayer and its norm."""
  parts = {'q_proj': 'query', 'k_proj': 'key', 'v_proj': 'value', 'out_proj': 'out'}
  entries = rules.norm(f'{tensor}_layer_norm', f'{path}_norm')
  for theirs, ours in parts.items():
    entries += rules.dense(f'{tensor}.{theirs}', f'{path}/{ours}', 2 if ours == 'out' else 1)
  return entries
