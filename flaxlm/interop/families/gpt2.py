"""GPT-2 (Radford et al. 2019): pre-norm decoder. Its matrices are stored [in, out]."""

import functools

from flaxlm.config.transformer import TransformerConfig
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

# The public code puts nothing round a text.
MARKS = {'decoder_marks': 'none'}


def _table(model: TransformerConfig, head: Head, prefix: str) -> list[rules.Entry]:
  vocabulary = rules.Vocabulary(model.vocab_size)
  out = 'classifier' if head.objective == 'tagging' else 'score'
  here, layer = 'trunk/stack/layers', f'{prefix}h.{{layer}}'
  tied = ('lm_head.weight',) if model.tie_embeddings else ()
  conv = functools.partial(rules.dense, transposed=False)
  projections = tuple(f'{here}/attention/{name}' for name in ('query', 'key', 'value'))
  return [
    rules.Rule(f'{prefix}wte.weight', ('trunk/token/table',), vocabulary, copies=tied),
    rules.Rule(f'{prefix}wpe.weight', ('trunk/position/table',), rules.Table()),
    *rules.norm(f'{layer}.ln_1', f'{here}/attention_norm'),
    rules.Rule(
      f'{layer}.attn.c_attn.weight',
      tuple(f'{path}/kernel' for path in projections),
      rules.Fused(rules.Kernel(transposed=False), axis=1),
    ),
    rules.Rule(
      f'{layer}.attn.c_attn.bias',
      tuple(f'{path}/bias' for path in projections),
      rules.Fused(rules.Plain(), axis=0),
    ),
    *conv(f'{layer}.attn.c_proj', f'{here}/attention/out', inputs=2),
    *rules.norm(f'{layer}.ln_2', f'{here}/mlp_norm'),
    *conv(f'{layer}.mlp.c_fc', f'{here}/mlp/up'),
    *conv(f'{layer}.mlp.c_proj', f'{here}/mlp/down'),
    *rules.norm(f'{prefix}ln_f', 'trunk/final_norm'),
    rules.Rule('lm_head.weight', ('head/vocab/table',), vocabulary),
    *rules.dense(out, 'head/classes/out'),
    rules.Buffer(f'{layer}.attn.bias', rules.causal),
    rules.Buffer(f'{layer}.attn.masked_bias', rules.masked_score),
  ]


FAMILY = Family(
  name='gpt2',
  model='decoder',
  prefix='transformer.',
  architectures={
    'GPT2LMHeadModel': Head('causal_lm'),
    'GPT2ForSequenceClassification': Head('classification', DECODER_CLASSES, reads=MARKS),
    'GPT2ForTokenClassification': Head('tagging', EACH_TOKEN, reads=MARKS),
    'GPT2Model': Head('causal_lm', trunk_only=True),
  },
  refused={'GPT2ForQuestionAnswering': DECODER_SPANS},
  fixed={
    'norm': 'layernorm',
    'norm_placement': 'pre',
    'use_bias': True,
    'position': 'learned',
    'mlp_dropout_rate': 0.0,
    'init': 'gpt2',
  },
  fields=(
    Field('n_embd', 'emb_dim'),
    Field('n_layer', 'num_layers'),
    Field('n_head', 'num_heads'),
    Field('n_inner', 'mlp_dim', None),
    Field('n_positions', 'max_length', 1024),
    Field('layer_norm_epsilon', 'norm_eps', 1e-5),
    Field(
      'activation_function', 'activation', 'gelu_new', {'gelu_new': 'gelu_tanh', **ACTIVATIONS}
    ),
    Field('resid_pdrop', 'dropout_rate', 0.1),
    Field('embd_pdrop', 'embedding_dropout_rate', 0.1),
    Field('attn_pdrop', 'attention_dropout_rate', 0.1),
    Field('initializer_range', 'init_std', 0.02),
    Field('scale_attn_weights', 'scale_attention', True),
    Field('tie_word_embeddings', 'tie_embeddings', True),
  ),
  required={
    'scale_attn_by_inverse_layer_idx': (False,),
    'add_cross_attention': (False,),
  },
  table=_table,
  marks=MARKS,
)
