"""Fields of config.json: what cannot be followed is one line that names the field."""

import re

import pytest

from flaxlm.errors import UserError
from flaxlm.interop import convert, mapping

SIZES = {
  'vocab_size': 10, 'hidden_size': 16, 'num_hidden_layers': 3, 'num_attention_heads': 2,
  'intermediate_size': 24, 'max_position_embeddings': 16,
}  # fmt: skip
BERT = SIZES | {'model_type': 'bert', 'architectures': ['BertForMaskedLM']}
CLASSES = BERT | {'architectures': ['BertForSequenceClassification']}
TAGS = BERT | {'architectures': ['BertForTokenClassification']}
ROBERTA = SIZES | {'model_type': 'roberta', 'architectures': ['RobertaForSequenceClassification']}
LLAMA = SIZES | {'model_type': 'llama', 'architectures': ['LlamaForCausalLM']}
MODERN = SIZES | {
  'model_type': 'modernbert', 'architectures': ['ModernBertForSequenceClassification'],
}  # fmt: skip
GPT2 = {
  'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'], 'vocab_size': 10, 'n_embd': 16,
  'n_layer': 2, 'n_head': 2,
}  # fmt: skip
T5 = {
  'model_type': 't5', 'architectures': ['T5ForConditionalGeneration'], 'vocab_size': 10,
  'd_model': 16, 'd_kv': 8, 'num_heads': 2, 'd_ff': 24, 'num_layers': 2,
}  # fmt: skip
BART = {
  'model_type': 'bart', 'architectures': ['BartForSequenceClassification'], 'vocab_size': 10,
  'd_model': 16, 'encoder_layers': 2, 'decoder_layers': 2, 'encoder_attention_heads': 2,
  'decoder_attention_heads': 2, 'encoder_ffn_dim': 24, 'decoder_ffn_dim': 24,
}  # fmt: skip
XLNET = {
  'model_type': 'xlnet', 'architectures': ['XLNetForSequenceClassification'], 'vocab_size': 10,
  'd_model': 16, 'n_layer': 2, 'n_head': 2, 'd_inner': 24,
}  # fmt: skip


class Noted(dict):
  """A config.json that notes which of its fields are asked for."""

  def __init__(self, content, asked):
    super().__init__(content)
    self.asked = asked

  def get(self, key, default=None):
    self.asked.add(key)
    return super().get(key, default)


ODD = ('x', 3, 0, -1, 1.5, True, None, [], ['x'], [['x']], {}, {'a': 1}, {'full_attention': 3})


@pytest.mark.parametrize(
  'config',
  [BERT, CLASSES, ROBERTA, LLAMA, MODERN, GPT2, T5, BART, XLNET],
  ids=lambda c: c['model_type'],
)
def test_no_value_of_any_field_ends_in_a_traceback(config):
  asked = {*config, 'id2label', 'num_labels', 'problem_type'}
  mapping.to_ours(mapping.find_family(config), Noted(config, asked))
  assert len(asked) > 15
  for key in asked:
    for value in ODD:
      try:
        convert.describe(config | {key: value}, [])
      except UserError as error:
        assert str(error).startswith('config.json: ') and '\n' not in str(error)


@pytest.mark.parametrize(
  'config, changes, message',
  [
    (BERT, {'architectures': 3}, 'architectures: expected a list, got 3'),
    (BERT, {'architectures': [['x']]}, "architectures=['x'] is not supported"),
    (BERT, {'model_type': ['bert']}, "model_type=['bert'] is not supported"),
    (BERT, {'hidden_size': '16'}, "hidden_size: expected whole number, got '16'"),
    (BERT, {'hidden_act': ['gelu']}, "hidden_act=['gelu'] is not supported"),
    (CLASSES, {'id2label': {'0': ['a'], '1': 'b'}}, 'a label is a text'),
    (CLASSES, {'id2label': {'0': 'a', '2': 'b'}}, 'does not number the labels from 0 on'),
    (CLASSES, {'id2label': {'0': 'a', '1': 'a', '2': 'b'}}, 'gives two labels one name'),
    (TAGS, {'id2label': {'0': 'a'}}, "its label is 'a' alone; a classifier needs two labels or"),
    (
      CLASSES,
      {'num_labels': 1, 'problem_type': 'single_label_classification'},
      "its label is 'LABEL_0' alone",
    ),
    (CLASSES, {'num_labels': 0}, 'num_labels=0 is not a number of labels'),
    (CLASSES, {'problem_type': 'x'}, "problem_type='x' is not supported; those that are: "),
    (CLASSES, {'problem_type': 'regression'}, 'of 2 numbers is not supported, only 1'),
    (
      XLNET,
      {'architectures': ['XLNetForQuestionAnswering']},
      'XLNetForQuestionAnswering is not supported: the end of its answer depends on the beginning',
    ),
    (LLAMA, {'rope_parameters': 'x'}, "rope_parameters: expected an object, got 'x'"),
    (LLAMA, {'rope_scaling': {'rope_type': ['x']}}, "rope_type: expected text, got ['x']"),
    (LLAMA, {'rope_parameters': {'full_attention': {}}}, 'of each kind of layer'),
    (LLAMA, {'partial_rotary_factor': 0.5}, 'partial_rotary_factor is not supported, only 1'),
    (MODERN, {'local_attention': None}, 'local_attention: expected whole number, got none'),
    (MODERN, {'global_attn_every_n_layers': 0}, 'global_attn_every_n_layers=0 must be 1 or more'),
    (MODERN, {'rope_parameters': {'full_attention': 3}}, 'full_attention: expected an object'),
    (MODERN, {'num_hidden_layers': 'x'}, 'num_hidden_layers: expected whole number'),
    (T5, {'feed_forward_proj': ['x']}, "feed_forward_proj: expected text, got ['x']"),
    (T5, {'dense_act_fn': 'silu'}, "dense_act_fn='silu' is not supported beside"),
    (T5, {'is_gated_act': True}, 'is_gated_act=True is not supported beside'),
    (
      LLAMA,
      {
        'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e4},
        'rope_scaling': {'rope_type': 'linear', 'factor': 4.0},
      },
      'rope_parameters and rope_scaling differ',
    ),
    (MODERN, {'rope_parameters': {'rope_theta': 70.0}}, 'rope_parameters.rope_theta is not supp'),
  ],
)
def test_the_field_is_named(config, changes, message):
  with pytest.raises(UserError, match=re.escape(message)):
    convert.describe(config | changes, [])


@pytest.mark.parametrize(
  'changes, objective, labels',
  [
    ({}, 'classification', 2),
    ({'num_labels': 1}, 'regression', 0),
    ({'num_labels': 1, 'problem_type': 'regression'}, 'regression', 0),
    ({'num_labels': 1, 'problem_type': 'multi_label_classification'}, 'multi_label', 1),
    ({'id2label': {'0': 'a', '1': 'b'}, 'problem_type': 'single_label_classification'},
     'classification', 2),
  ],
)  # fmt: skip
def test_what_a_sequence_classifier_learns(changes, objective, labels):
  public = convert.describe(CLASSES | changes, [])
  assert (public.head.objective, len(public.labels)) == (objective, labels)


def test_a_file_is_named_as_its_family_and_a_class_is_read_or_refused():
  for model_type, family in mapping.families().items():
    assert family.name == model_type
    assert not set(family.architectures) & set(family.refused)


def test_a_number_of_labels_names_them():
  labels = lambda config, **changes: convert.describe(config | changes, []).labels
  assert labels(CLASSES) == ('LABEL_0', 'LABEL_1')
  assert labels(CLASSES, num_labels=3) == ('LABEL_0', 'LABEL_1', 'LABEL_2')
  assert labels(CLASSES, num_labels=3, id2label={'1': 'b', '0': 'a'}) == ('a', 'b')
  assert len(labels(BART)) == 3 and len(labels(BART, num_labels=4)) == 4
