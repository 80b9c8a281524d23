"""XLNet (Yang et al. 2019): two streams, relative positions; heads for tokens and for tasks."""

from collections.abc import Mapping
from typing import Any

from flaxlm.config.transformer import TransformerConfig
from flaxlm.interop import rules
from flaxlm.interop.family import ACTIVATIONS, EACH_TOKEN, Family, Field, Head
from flaxlm.interop.mapping import value_of

SUMMARY = {'pooling': 'last', 'pooler': 'tanh'}


def _extra_ours(config_json: Mapping[str, Any]) -> dict[str, Any]:
  return {'memory_length': value_of(config_json, 'mem_len', int, None) or 0}


def _extra_theirs(model: TransformerConfig) -> dict[str, Any]:
  return {'mem_len': model.memory_length or None}


def _table(model: TransformerConfig, head: Head, prefix: str) -> list[rules.Entry]:
  vocabulary = rules.Vocabulary(model.vocab_size)
  here, layer = 'trunk/stack/layers', f'{prefix}layer.{{layer}}'
  relative = {
    'r': 'key/kernel',
    'r_w_bias': 'content_bias',
    'r_r_bias': 'position_bias',
    'r_s_bias': 'segment_bias',
    'seg_embed': 'segments',
  }
  tied = ('lm_loss.weight',) if model.tie_embeddings else ()
  out = 'classifier' if head.objective == 'tagging' else 'logits_proj'
  return [
    rules.Rule(f'{prefix}word_embedding.weight', ('trunk/token/table',), vocabulary, copies=tied),
    rules.Rule(f'{prefix}mask_emb', ('trunk/query',), rules.Boxed()),
    *(
      rules.Rule(f'{layer}.rel_attn.{name[0]}', (f'{here}/attention/{name}/kernel',), rules.Table())
      for name in ('query', 'key', 'value')
    ),
    *(
      rules.Rule(f'{layer}.rel_attn.{name}', (f'{here}/attention/relative/{path}',), rules.Table())
      for name, path in relative.items()
    ),
    rules.Rule(f'{layer}.rel_attn.o', (f'{here}/attention/out/kernel',), rules.LastFirst()),
    *rules.norm(f'{layer}.rel_attn.layer_norm', f'{here}/attention_norm'),
    *rules.dense(f'{layer}.ff.layer_1', f'{here}/mlp/up'),
    *rules.dense(f'{layer}.ff.layer_2', f'{here}/mlp/down'),
    *rules.norm(f'{layer}.ff.layer_norm', f'{here}/mlp_norm'),
    rules.Rule('lm_loss.weight', ('head/vocab/table',), vocabulary),
    rules.Rule('lm_loss.bias', ('head/vocab/bias',), vocabulary),
    *rules.dense('sequence_summary.summary', 'head/classes/pooler'),
    *rules.dense(out, 'head/classes/out'),
    *rules.dense('qa_outputs', 'head/span'),
  ]


FAMILY = Family(
  name='xlnet',
  model='xlnet',
  prefix='transformer.',
  architectures={
    'XLNetLMHeadModel': Head('permutation_lm'),
    'XLNetForSequenceClassification': Head('classification', SUMMARY),
    'XLNetForMultipleChoice': Head('multiple_choice', SUMMARY),
    'XLNetForTokenClassification': Head('tagging', EACH_TOKEN),
    'XLNetForQuestionAnsweringSimple': Head('span_qa', EACH_TOKEN),
    'XLNetModel': Head('permutation_lm', trunk_only=True),
  },
  refused={
    'XLNetForQuestionAnswering': (
      'the end of its answer depends on the beginning, by a beam search; span_qa finds both alike, '
      'as XLNetForQuestionAnsweringSimple does'
    ),
  },
  fixed={
    'norm': 'layernorm',
    'norm_placement': 'post',
    'use_bias': True,
    'attention_bias': False,
    'position': 'transformer_xl',
    'token_types': 3,
    'init': 'bert',
  },
  fields=(
    Field('d_model', 'emb_dim'),
    Field('n_layer', 'num_layers'),
    Field('n_head', 'num_heads'),
    Field('d_inner', 'mlp_dim'),
    Field('ff_activation', 'activation', 'gelu', ACTIVATIONS),
    Field('layer_norm_eps', 'norm_eps', 1e-12),
    Field(
      'dropout',
      'dropout_rate',
      0.1,
      also=('embedding_dropout_rate', 'attention_dropout_rate'),
    ),
    Field('initializer_range', 'init_std', 0.02),
    Field('tie_word_embeddings', 'tie_embeddings', True),
  ),
  extra_ours=_extra_ours,
  extra_theirs=_extra_theirs,
  required={
    'attn_type': ('bi',),
    'bi_data': (False,),
    'clamp_len': (-1,),
    'same_length': (False,),
    'untie_r': (True,),
    'summary_type': ('last',),
    'summary_use_proj': (True,),
    'summary_activation': ('tanh',),
  },
  # Any length is read, and no file says which was trained.
  unsaid=('max_length',),
  table=_table,
)
