"""RoBERTa (Liu et al. 2019): BERT's trunk; its positions begin after the padding id."""

from collections.abc import Mapping
from typing import Any

from flaxlm.config.transformer import TransformerConfig
from flaxlm.errors import UserError
from flaxlm.interop import rules
from flaxlm.interop.families import bert
from flaxlm.interop.family import EACH_TOKEN, ENCODER_CLASSES, Family, Field, Head
from flaxlm.interop.mapping import value_of

MARKS = {'pair_separators': 2}
# The rows of the position table before the first position: up to and including that of padding.
SKIPPED = 2


def _extra_ours(config_json: Mapping[str, Any]) -> dict[str, Any]:
  rows = value_of(config_json, 'max_position_embeddings', int, 512)
  if rows <= SKIPPED:
    raise UserError(f'config.json: max_position_embeddings={rows} leaves no position')
  return {'max_length': rows - SKIPPED}


def _extra_theirs(model: TransformerConfig) -> dict[str, Any]:
  return bert.FAMILY.extra_theirs(model) | {'max_position_embeddings': model.max_length + SKIPPED}


def _table(model: TransformerConfig, head: Head, prefix: str) -> list[rules.Entry]:
  vocabulary = rules.Vocabulary(model.vocab_size)
  decoder = 'lm_head.decoder.weight'
  tied = (decoder,) if model.tie_embeddings else ()
  entries = bert.encoder(prefix, vocabulary, tied)
  entries += rules.dense('lm_head.dense', 'head/mlm/dense')
  entries += rules.norm('lm_head.layer_norm', 'head/mlm/norm')
  entries += bert.vocabulary_head('lm_head', model)
  pooler, out = f'{prefix}pooler.dense', 'classifier'
  if head.is_pooled and head.objective != 'multiple_choice':
    pooler, out = 'classifier.dense', 'classifier.out_proj'
  entries += rules.dense(pooler, 'head/classes/pooler')
  entries += rules.dense(out, 'head/classes/out')
  entries += rules.dense('qa_outputs', 'head/span')
  # Only a choice is read by the trunk's pooler: a classifier has its own.
  entries += [rules.Kept(f'{prefix}pooler.dense.{kind}') for kind in ('weight', 'bias')]
  return entries


FAMILY = Family(
  name='roberta',
  model=bert.FAMILY.model,
  prefix='roberta.',
  architectures={
    'RobertaForMaskedLM': Head('masked_lm', {'pairs': 'none'}),
    'RobertaForSequenceClassification': Head('classification', {**ENCODER_CLASSES, **MARKS}),
    'RobertaForMultipleChoice': Head('multiple_choice', {**ENCODER_CLASSES, **MARKS}),
    'RobertaForTokenClassification': Head('tagging', EACH_TOKEN),
    'RobertaForQuestionAnswering': Head('span_qa', {**EACH_TOKEN, **MARKS}),
    'RobertaModel': Head('masked_lm', {'pairs': 'none'}, trunk_only=True),
  },
  fixed={**bert.FAMILY.fixed, 'position_offset': SKIPPED},
  fields=(
    *(field for field in bert.FAMILY.fields if field.ours not in ('max_length', 'activation')),
    # The vocabulary head has a gelu whatever the layers have, and flaxlm's has that of the layers.
    Field('hidden_act', 'activation', 'gelu', {'gelu': 'gelu'}),
  ),
  extra_ours=_extra_ours,
  extra_theirs=_extra_theirs,
  required={**bert.FAMILY.required, 'pad_token_id': (1,)},
  table=_table,
  marks=MARKS,
  counts_padding=False,
)
