"""What `import` checks of a folder beside its tensors: padded references, the decoder's start."""

import importlib
import json

import numpy as np
import pytest
from public_folder import BERT, WORDS

from flaxlm.commands import _reference
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError
from flaxlm.interop import convert, mapping

XLNET = {
  'model_type': 'xlnet', 'architectures': ['XLNetForSequenceClassification'], 'vocab_size': 10,
  'd_model': 16, 'n_layer': 2, 'n_head': 2, 'd_inner': 24,
}  # fmt: skip
T5 = {
  'model_type': 't5', 'architectures': ['T5ForConditionalGeneration'], 'vocab_size': 10,
  'd_model': 16, 'd_kv': 8, 'num_heads': 2, 'd_ff': 24, 'num_layers': 2,
}  # fmt: skip
MASKS = {'left': [[0, 0, 1, 1], [1, 1, 1, 1]], 'right': [[1, 1, 0, 0], [1, 1, 1, 1]]}


def padded(side):
  return {'input_ids': np.full((2, 4), 7), 'attention_mask': np.array(MASKS[side])}


@pytest.mark.parametrize('side, places', [('left', [[3], [3]]), ('right', [[1], [3]])])
def test_a_text_is_read_at_its_last_token(side, places):
  for config in (XLNET, T5 | {'architectures': ['T5ForSequenceClassification']}):
    batch = _reference.batch_of(convert.describe(config, []), padded(side))
    np.testing.assert_array_equal(batch['target_positions'], places)


def test_positions_of_roberta_begin_with_the_text():
  config = BERT | {'model_type': 'roberta', 'architectures': ['RobertaForMaskedLM']}
  batch = _reference.batch_of(convert.describe(config, []), padded('left'))
  np.testing.assert_array_equal(batch['positions'], [[0, 0, 0, 1], [0, 1, 2, 3]])
  np.testing.assert_array_equal(batch['target_positions'], [[0, 1, 2, 3]] * 2)


@pytest.mark.parametrize(
  'config, side, message',
  [
    (XLNET, 'right', 'XLNetForSequenceClassification reads the last place; pad on the left'),
    (
      BERT | {'architectures': ['BertForSequenceClassification']},
      'left',
      'BertForSequenceClassification reads the first place; pad on the right',
    ),
  ],
)
def test_a_classifier_that_reads_padding(config, side, message, tmp_path):
  public = convert.describe(config, [])
  with pytest.raises(UserError, match=message):
    _reference._check_padding(public, padded(side), tmp_path / _reference.FILE)
  other = {'left': 'right', 'right': 'left'}[side]
  _reference._check_padding(public, padded(other), tmp_path / _reference.FILE)


def test_the_decoder_starts_with_the_token_of_its_family(tmp_path):
  check = importlib.import_module('flaxlm.commands.import')._check_start
  (tmp_path / 'vocab.txt').write_text('\n'.join([*WORDS, '</s>']) + '\n')
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'cls_token': '[PAD]'}))
  tokenizer = Tokenizer.load(tmp_path)
  for start in ({}, {'decoder_start_token_id': 0}, {'decoder_start_token_id': None}):
    check(convert.describe(T5 | start, []), tokenizer)
  check(convert.describe(BERT, []), tokenizer)
  with pytest.raises(UserError, match=r"decoder_start_token_id=3 .* tokenizer's '\[PAD\]', 0"):
    check(convert.describe(T5 | {'decoder_start_token_id': 3}, []), tokenizer)


def test_dropout_of_modernbert_inside_its_mlp():
  config = BERT | {
    'model_type': 'modernbert', 'architectures': ['ModernBertForMaskedLM'], 'mlp_dropout': 0.2,
    'attention_dropout': 0.1, 'embedding_dropout': 0.3,
  }  # fmt: skip
  public = convert.describe(config, [])
  model = public.model
  assert (model.dropout_rate, model.mlp_dropout_rate) == (0.0, 0.2)
  assert (model.attention_dropout_rate, model.embedding_dropout_rate) == (0.1, 0.3)
  theirs = mapping.to_theirs(public.family, model)
  for name in ('mlp_dropout', 'attention_dropout', 'embedding_dropout'):
    assert theirs[name] == config[name]
