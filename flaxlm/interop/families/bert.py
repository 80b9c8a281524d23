"""BERT (Devlin et al. 2019): post-norm encoder; heads for masked words, next sentence, tasks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flaxlm.config.transformer import TransformerConfig
from flaxlm.errors import UserError
from flaxlm.interop import rules
from flaxlm.interop.family import ACTIVATIONS, EACH_TOKEN, ENCODER_CLASSES, Family, Field, Head


def _amended(config_json: Mapping[str, Any], tensor_names: Sequence[str]) -> Mapping[str, Any]:
  """config.json with what the tensors say: files of the pretraining model may name one head."""
  both = 'cls.seq_relationship.weight' in tensor_names
  if both and config_json.get('architectures') == ['BertForMaskedLM']:
    return {**config_json, 'architectures': ['BertForPreTraining']}
  return config_json


def _extra_theirs(model: TransformerConfig) -> dict[str, Any]:
  """Nothing to add; UserError for a model that transformers cannot run."""
  if not model.token_types:
    kind = 'config.model.token_types: the files of bert and roberta cannot express 0'
    raise UserError(f'{kind}; 1 makes no difference to what a model can learn')
  return {}


def _table(model: TransformerConfig, head: Head, prefix: str) -> list[rules.Entry]:
  vocabulary = rules.Vocabulary(model.vocab_size)
  decoder = 'cls.predictions.decoder.weight'
  tied = (decoder,) if model.tie_embeddings else ()
  entries = encoder(prefix, vocabulary, tied)
  pooled = head.objective == 'masked_lm' and head.options['pairs'] == 'next_sentence'
  pooler = 'head/nsp' if pooled else 'head/classes'
  for rule in rules.dense(f'{prefix}pooler.dense', f'{pooler}/pooler'):
    # A trunk may come with it or without.
    entries.append(dataclasses.replace(rule, optional=head.trunk_only))
    # A model of masked words only may come with the pooler of its pretraining.
    entries.append(rules.Kept(rule.tensor))
  entries += rules.dense('cls.seq_relationship', 'head/nsp/out')
  entries += rules.dense('classifier', 'head/classes/out')
  entries += rules.dense('qa_outputs', 'head/span')
  entries += rules.dense('cls.predictions.transform.dense', 'head/mlm/dense')
  entries += rules.norm('cls.predictions.transform.LayerNorm', 'head/mlm/norm')
  return entries + vocabulary_head('cls.predictions', model)


def vocabulary_head(tensor: str, model: TransformerConfig) -> list[rules.Entry]:
  """Entries of the output's table and bias, `tensor` being what their names begin with.

  Where the table is not tied, only the bias of the linear map is in use.
  """
  vocabulary = rules.Vocabulary(model.vocab_size)
  bias, own = f'{tensor}.bias', f'{tensor}.decoder.bias'
  if model.tie_embeddings:
    return [rules.Rule(bias, ('head/mlm/bias',), vocabulary, copies=(own,))]
  return [
    rules.Rule(f'{tensor}.decoder.weight', ('head/mlm/table',), vocabulary),
    rules.Rule(own, ('head/mlm/bias',), vocabulary),
    rules.Kept(bias),
  ]


def encoder(prefix: str, vocabulary: rules.Vocabulary, tied: tuple[str, ...]) -> list[rules.Entry]:
  """Entries of the trunk, whose names begin with `prefix`; tied: other names of the token table."""
  emb, layer = f'{prefix}embeddings', f'{prefix}encoder.layer.{{layer}}'
  here = 'trunk/stack/layers'
  return [
    rules.Rule(f'{emb}.word_embeddings.weight', ('trunk/token/table',), vocabulary, copies=tied),
    rules.Rule(f'{emb}.position_embeddings.weight', ('trunk/position/table',), rules.Table()),
    rules.Rule(
      f'{emb}.token_type_embeddings.weight', ('trunk/embedding/token_types',), rules.Table()
    ),
    *rules.norm(f'{emb}.LayerNorm', 'trunk/embedding/norm'),
    *rules.dense(f'{layer}.attention.self.query', f'{here}/attention/query'),
    *rules.dense(f'{layer}.attention.self.key', f'{here}/attention/key'),
    *rules.dense(f'{layer}.attention.self.value', f'{here}/attention/value'),
    *rules.dense(f'{layer}.attention.output.dense', f'{here}/attention/out', inputs=2),
    *rules.norm(f'{layer}.attention.output.LayerNorm', f'{here}/attention_norm'),
    *rules.dense(f'{layer}.intermediate.dense', f'{here}/mlp/up'),
    *rules.dense(f'{layer}.output.dense', f'{here}/mlp/down'),
    *rules.norm(f'{layer}.output.LayerNorm', f'{here}/mlp_norm'),
    rules.Buffer(f'{emb}.position_ids', rules.positions),
  ]


FAMILY = Family(
  name='bert',
  model='encoder',
  prefix='bert.',
  architectures={
    'BertForPreTraining': Head('masked_lm', {'pairs': 'next_sentence'}),
    'BertForMaskedLM': Head('masked_lm', {'pairs': 'none'}),
    'BertForSequenceClassification': Head('classification', ENCODER_CLASSES),
    'BertForMultipleChoice': Head('multiple_choice', ENCODER_CLASSES),
    'BertForTokenClassification': Head('tagging', EACH_TOKEN),
    'BertForQuestionAnswering': Head('span_qa', EACH_TOKEN),
    'BertModel': Head('masked_lm', {'pairs': 'next_sentence'}, trunk_only=True),
  },
  fixed={
    'norm': 'layernorm',
    'norm_placement': 'post',
    'embedding_norm': True,
    'use_bias': True,
    'position': 'learned',
    'mlp_dropout_rate': 0.0,
    'init': 'bert',
  },
  fields=(
    Field('hidden_size', 'emb_dim'),
    Field('num_hidden_layers', 'num_layers'),
    Field('num_attention_heads', 'num_heads'),
    Field('intermediate_size', 'mlp_dim'),
    Field('max_position_embeddings', 'max_length'),
    Field('type_vocab_size', 'token_types', 2),
    Field('layer_norm_eps', 'norm_eps', 1e-12),
    Field('hidden_act', 'activation', 'gelu', ACTIVATIONS),
    Field('hidden_dropout_prob', 'dropout_rate', 0.1, also=('embedding_dropout_rate',)),
    Field('attention_probs_dropout_prob', 'attention_dropout_rate', 0.1),
    Field('initializer_range', 'init_std', 0.02),
    Field('tie_word_embeddings', 'tie_embeddings', True),
  ),
  extra_theirs=_extra_theirs,
  required={
    'position_embedding_type': ('absolute', None),
    'is_decoder': (False,),
    'add_cross_attention': (False,),
  },
  amended=_amended,
  table=_table,
  # The names of files that were converted from the first release.
  spellings={'.gamma': '.weight', '.beta': '.bias'},
)
