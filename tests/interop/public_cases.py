"""Tiny random models of every public class that is read, at odd shapes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers

V = 50
BERT = {
  'vocab_size': V, 'hidden_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 3,
  'intermediate_size': 40, 'max_position_embeddings': 40,
}  # fmt: skip
ROBERTA = BERT | {'max_position_embeddings': 42, 'type_vocab_size': 1, 'layer_norm_eps': 1e-5}
GPT2 = {
  'vocab_size': V, 'n_embd': 24, 'n_layer': 2, 'n_head': 3, 'n_positions': 40, 'pad_token_id': 0,
  'bos_token_id': 1, 'eos_token_id': 1,
}  # fmt: skip
T5 = {
  'vocab_size': V, 'd_model': 24, 'd_kv': 6, 'num_heads': 3, 'd_ff': 40, 'num_layers': 2,
  'decoder_start_token_id': 0,
}  # fmt: skip
BART = {
  'vocab_size': V, 'd_model': 24, 'encoder_layers': 2, 'decoder_layers': 3,
  'encoder_attention_heads': 3, 'decoder_attention_heads': 3, 'encoder_ffn_dim': 40,
  'decoder_ffn_dim': 40, 'max_position_embeddings': 40,
}  # fmt: skip
LLAMA = {
  'vocab_size': V, 'hidden_size': 24, 'intermediate_size': 40, 'num_hidden_layers': 2,
  'num_attention_heads': 4, 'max_position_embeddings': 64, 'pad_token_id': 0, 'bos_token_id': 1,
  'eos_token_id': 2,
}  # fmt: skip
MODERN = {
  'vocab_size': V, 'hidden_size': 24, 'intermediate_size': 40, 'num_hidden_layers': 5,
  'num_attention_heads': 3, 'max_position_embeddings': 64, 'local_attention': 8,
  'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2, 'cls_token_id': 1, 'sep_token_id': 2,
}  # fmt: skip
XLNET = {
  'vocab_size': V, 'd_model': 24, 'n_layer': 2, 'n_head': 3, 'd_inner': 40, 'pad_token_id': 0,
}  # fmt: skip
LLAMA3 = {
  'rope_type': 'llama3', 'rope_theta': 1e4, 'factor': 4.0, 'low_freq_factor': 1.0,
  'high_freq_factor': 4.0, 'original_max_position_embeddings': 16,
}  # fmt: skip


MANY = 'multi_label_classification'
YARN = {
  'rope_type': 'yarn', 'rope_theta': 1e4, 'factor': 4.0, 'original_max_position_embeddings': 16,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
  """A class of transformers and its config; untied: its output table is one of its own."""

  cls: str
  config: Mapping[str, Any]
  untied: bool = False

  @property
  def encoder_decoder(self):
    return self.cls.startswith(('T5', 'Bart'))

  @property
  def pad(self):
    return 1 if self.cls.startswith(('Roberta', 'Bart')) else 0

  def make(self, seed=0):
    """The model, its parameters random, in evaluation mode."""
    torch.manual_seed(seed)
    cls = getattr(transformers, self.cls)
    config = cls.config_class(
      **self.config, **({'tie_word_embeddings': False} if self.untied else {})
    )
    model = cls(config)
    if self.untied and self.cls.startswith('T5'):
      # As in files of T5 1.1; the library ties what a config asks to keep apart.
      model.lm_head.weight = torch.nn.Parameter(torch.zeros(V, config.d_model))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
      for name, parameter in model.named_parameters():
        scale = name.endswith('weight') and ('norm' in name.lower() or '.ln_' in name)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15 + scale)
    if self.untied and self.cls.startswith('Bart'):
      # The library unties the tables of the two stacks, too; flaxlm has one for both.
      for stack in (model.model.encoder, model.model.decoder):
        stack.embed_tokens.weight = model.model.shared.weight
    return model.eval()


def case(name, cls, config, untied=False, **changes):
  return name, Case(cls, {**config, **changes}, untied)


CASES = dict(
  [
    case('bert', 'BertForPreTraining', BERT),
    case('bert-masked', 'BertForMaskedLM', BERT, True, num_attention_heads=1, hidden_act='relu'),
    case('bert-tanh', 'BertForMaskedLM', BERT, hidden_act='gelu_new', type_vocab_size=3),
    case('bert-classes', 'BertForSequenceClassification', BERT, num_labels=3, hidden_act='silu'),
    case('bert-number', 'BertForSequenceClassification', BERT, num_labels=1),
    case('bert-labels', 'BertForSequenceClassification', BERT, problem_type=MANY, num_labels=3),
    case('bert-choices', 'BertForMultipleChoice', BERT),
    case('bert-tags', 'BertForTokenClassification', BERT, num_labels=5),
    case('bert-span', 'BertForQuestionAnswering', BERT),
    case('bert-trunk', 'BertModel', BERT, num_attention_heads=6),
    case('roberta', 'RobertaForMaskedLM', ROBERTA),
    case('roberta-untied', 'RobertaForMaskedLM', ROBERTA, True, type_vocab_size=2),
    case('roberta-classes', 'RobertaForSequenceClassification', ROBERTA, num_labels=3),
    case(
      'roberta-number', 'RobertaForSequenceClassification', ROBERTA,
      problem_type='regression', num_labels=1,
    ),
    case('roberta-choices', 'RobertaForMultipleChoice', ROBERTA),
    case('roberta-tags', 'RobertaForTokenClassification', ROBERTA, num_labels=5),
    case('roberta-span', 'RobertaForQuestionAnswering', ROBERTA),
    case('roberta-trunk', 'RobertaModel', ROBERTA),
    case('gpt2', 'GPT2LMHeadModel', GPT2),
    case(
      'gpt2-untied', 'GPT2LMHeadModel', GPT2, True,
      n_inner=20, n_head=1, activation_function='relu', scale_attn_weights=False,
    ),
    case('gpt2-classes', 'GPT2ForSequenceClassification', GPT2, num_labels=3),
    case(
      'gpt2-labels', 'GPT2ForSequenceClassification', GPT2, problem_type=MANY, num_labels=3,
    ),
    case('gpt2-tags', 'GPT2ForTokenClassification', GPT2, num_labels=5),
    case('gpt2-trunk', 'GPT2Model', GPT2, activation_function='silu'),
    case('t5', 'T5ForConditionalGeneration', T5),
    case(
      't5-1.1', 'T5ForConditionalGeneration', T5, True,
      feed_forward_proj='gated-gelu', num_decoder_layers=3,
    ),
    case(
      't5-silu', 'T5ForConditionalGeneration', T5,
      feed_forward_proj='gated-silu', relative_attention_num_buckets=8,
      relative_attention_max_distance=20, num_heads=5,
    ),
    case(
      't5-classes', 'T5ForSequenceClassification', T5,
      num_labels=3, eos_token_id=1, feed_forward_proj='gated-gelu',
    ),
    case('t5-trunk', 'T5Model', T5, feed_forward_proj='gelu', num_layers=1, num_decoder_layers=2),
    case('bart', 'BartForConditionalGeneration', BART),
    case(
      'bart-scaled', 'BartForConditionalGeneration', BART,
      scale_embedding=True, activation_function='relu', encoder_layers=1,
    ),
    case('bart-untied', 'BartForConditionalGeneration', BART, True),
    case('bart-classes', 'BartForSequenceClassification', BART),
    case('bart-number', 'BartForSequenceClassification', BART, num_labels=1),
    case('bart-trunk', 'BartModel', BART),
    case('llama', 'LlamaForCausalLM', LLAMA, True, num_key_value_heads=2),
    case(
      'llama-tied', 'LlamaForCausalLM', LLAMA,
      tie_word_embeddings=True, num_key_value_heads=1, head_dim=10, rope_parameters=LLAMA3,
    ),
    case(
      'llama-linear', 'LlamaForCausalLM', LLAMA, True, hidden_act='gelu',
      rope_parameters={'rope_type': 'linear', 'rope_theta': 5e3, 'factor': 2.0},
    ),
    case(
      'llama-biased', 'LlamaForCausalLM', LLAMA, True,
      attention_bias=True, mlp_bias=True, num_key_value_heads=2, rope_parameters=YARN,
    ),
    case(
      'llama-yarn', 'LlamaForCausalLM', LLAMA, True, head_dim=12, attention_bias=True,
      rope_parameters=YARN | {'beta_fast': 4.0, 'beta_slow': 0.2, 'attention_factor': 1.3},
    ),
    case('llama-classes', 'LlamaForSequenceClassification', LLAMA, num_labels=3),
    case('llama-tags', 'LlamaForTokenClassification', LLAMA, num_labels=5),
    case('llama-trunk', 'LlamaModel', LLAMA, num_key_value_heads=4),
    case('modernbert', 'ModernBertForMaskedLM', MODERN),
    case(
      'modernbert-untied', 'ModernBertForMaskedLM', MODERN, True,
      num_hidden_layers=2, hidden_activation='silu', classifier_activation='silu',
    ),
    case(
      'modernbert-classes', 'ModernBertForSequenceClassification', MODERN,
      num_labels=3, hidden_activation='silu', classifier_activation='silu',
    ),
    case(
      'modernbert-mean-classes', 'ModernBertForSequenceClassification', MODERN,
      num_labels=4, classifier_pooling='mean', num_hidden_layers=2,
    ),
    case('modernbert-choices', 'ModernBertForMultipleChoice', MODERN),
    case(
      'modernbert-mean-choices', 'ModernBertForMultipleChoice', MODERN,
      classifier_pooling='mean', num_hidden_layers=2,
    ),
    case('modernbert-tags', 'ModernBertForTokenClassification', MODERN, num_labels=5),
    case('modernbert-span', 'ModernBertForQuestionAnswering', MODERN),
    case(
      'modernbert-trunk', 'ModernBertModel', MODERN,
      num_hidden_layers=4, layer_types=['full_attention', 'sliding_attention'] * 2,
    ),
    case('xlnet', 'XLNetLMHeadModel', XLNET),
    case('xlnet-untied', 'XLNetLMHeadModel', XLNET, True, n_head=1, ff_activation='relu'),
    case('xlnet-classes', 'XLNetForSequenceClassification', XLNET, num_labels=3),
    case('xlnet-labels', 'XLNetForSequenceClassification', XLNET, problem_type=MANY),
    case('xlnet-choices', 'XLNetForMultipleChoice', XLNET),
    case('xlnet-tags', 'XLNetForTokenClassification', XLNET, num_labels=5),
    case('xlnet-span', 'XLNetForQuestionAnsweringSimple', XLNET),
    case('xlnet-trunk', 'XLNetModel', XLNET, n_head=4, mem_len=7),
  ]
)  # fmt: skip


# Those whose loss is neither of tokens nor of classes of a text.
TASKS = [
  name for name in CASES if name.endswith(('-number', '-labels', '-choices', '-tags', '-span'))
]


def inputs(case, length=23, seed=0, left=False):
  """What the original takes, as numpy: two rows, the second padded at its end, or begin."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(5, V, (2, length))
  mask = np.ones((2, length), np.int64)
  # A classifier of XLNet's reads the last place, padding or not.
  left = left or case.cls.startswith(('XLNetForSequence', 'XLNetForMultiple'))
  mask[1, slice(length // 3) if left else slice(length - length // 3, None)] = 0
  arrays = {'input_ids': np.where(mask == 1, ids, case.pad), 'attention_mask': mask}
  if case.cls.endswith('SequenceClassification') and case.encoder_decoder:
    # They are read where the text ends, and give the decoder the text by themselves.
    eos = 2 if case.cls.startswith('Bart') else 1
    arrays['input_ids'][np.arange(2), -1 if left else mask.sum(1) - 1] = eos
  elif case.encoder_decoder:
    arrays['decoder_input_ids'] = rng.integers(5, V, (2, max(length - 4, 1)))
  if case.cls.startswith(('Bert', 'XLNet')):
    types = case.config.get('type_vocab_size', 2)
    arrays['token_type_ids'] = rng.integers(0, types, (2, length))
  return arrays


def run(model, arrays):
  """The original's output object; of choices, a row for each."""
  tensors = {name: torch.tensor(array) for name, array in arrays.items()}
  if not type(model).__name__.endswith('MultipleChoice'):
    return model(**tensors)
  output = model(**{name: tensor[None] for name, tensor in tensors.items()})
  output.logits = output.logits.T
  return output


def main_output(output):
  """Logits of a head, or the hidden states of a trunk."""
  if getattr(output, 'start_logits', None) is not None:
    return torch.stack([output.start_logits, output.end_logits], -1)
  for name in ('prediction_logits', 'logits', 'last_hidden_state'):
    if getattr(output, name, None) is not None:
      return getattr(output, name)
  raise AssertionError(type(output))
