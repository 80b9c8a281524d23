"""Rows to examples, labels, and what is reported."""

import dataclasses

import numpy as np
import pytest
import sentencepiece
import tiny

from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.errors import UserError
from flaxlm.tasks.text_classification import Config, Task


def make(labels=(), **data):
  base = ExperimentConfig(task=Config('text_classification', labels))
  return Task(dataclasses.replace(base, data=dataclasses.replace(base.data, **data)))


def test_columns_by_name_and_number():
  row = {'text': 'good film', 'label': ' pos ', '0': 'bad', '1': 'neg'}
  example = make().parse(row, 'a.csv:2')
  assert (example['text'], example['label']) == ('good film', 'pos')
  example = make(text_column='0', label_column='1').parse(row, 'a.csv:2')
  assert (example['text'], example['label']) == ('bad', 'neg')


@pytest.mark.parametrize(
  'row,message',
  [
    ({'txt': 'x', 'label': 'a'}, "a.csv:7: no column 'text'.*'txt'.*config.data.text_column"),
    ({'text': 'x', 'lable': 'a'}, "a.csv:7: no column 'label'.*'lable'.*config.data.label_column"),
    ({'text': ' ', 'label': 'a'}, "a.csv:7: the text in column 'text' is empty"),
    ({'text': 'x', 'label': ' '}, "a.csv:7: the label in column 'label' is empty"),
    ({'text': 'x', 'label': 'poz'}, "a.csv:7: unknown label 'poz' .did you mean 'pos'"),
  ],
)
def test_a_malformed_row_is_named(row, message):
  with pytest.raises(UserError, match=message):
    make(('neg', 'pos')).parse(row, 'a.csv:7')


def test_rows_to_predict_need_no_label():
  assert 'label' not in make(('a', 'b')).parse({'text': 'x'}, 'f:1', labelled=False)


def test_what_stands_before_written_pairs_is_that_of_training():
  """Whatever the columns of other files are called."""
  base = ExperimentConfig(task=Config('text_classification', ('no', 'yes'), 'hypothesis', 'nli '))
  config = dataclasses.replace(base, data=dataclasses.replace(base.data, text_column='premise'))
  source = lambda config, a, b: Task(config).parse({a: 'It is.', b: 'So?'}, 'f:1', False)['source']
  expected = 'nli premise: It is. hypothesis: So?'
  assert source(config, 'premise', 'hypothesis') == expected
  found = dataclasses.replace(config.task, **Task(config).discover([]))
  other = dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, text_column='0'),
    task=dataclasses.replace(found, pair_column='1'),
  )
  assert source(other, '0', '1') == expected


def test_labels_are_those_of_training_sorted_unless_set():
  examples = [{'text': 't', 'label': label} for label in ('b', 'c', 'a', 'b')]
  assert make().discover(examples) == {'labels': ('a', 'b', 'c')}
  assert make(('c', 'b', 'a')).discover(examples) == {'labels': ('c', 'b', 'a')}
  with pytest.raises(UserError, match='needs two labels'):
    make().discover(examples[:1])


PREDICTIONS = {
  'example_ids': np.array([0, 2, 3]),
  'probabilities': np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]),
}
EXAMPLES = [
  {'text': 'a', 'label': 'neg'},
  {'text': 'b', 'label': 'pos'},
  {'text': 'c', 'label': 'pos'},
  {'text': 'd'},
]


def test_reports_only_what_was_predicted_and_has_a_label():
  task = make(('neg', 'pos'))
  metrics = task.metrics(PREDICTIONS, EXAMPLES)
  assert metrics['accuracy'] == 1.0 and metrics['f1_binary'] == 1.0
  matrix = task.details(PREDICTIONS, EXAMPLES)['confusion_matrix']
  assert matrix == {'neg': {'neg': 1, 'pos': 0}, 'pos': {'neg': 0, 'pos': 1}}
  only_unlabelled = {key: value[2:] for key, value in PREDICTIONS.items()}
  assert task.metrics(only_unlabelled, EXAMPLES) == {}
  assert task.details(only_unlabelled, EXAMPLES) == {}


def test_records_keep_the_row_with_its_prediction():
  records = list(make(('neg', 'pos')).records(PREDICTIONS, EXAMPLES))
  assert records[1] == {
    'text': 'c', 'label': 'pos', 'prediction': 'pos', 'probabilities': {'neg': 0.2, 'pos': 0.8},
  }  # fmt: skip
  assert records[2]['prediction'] == 'neg' and 'label' not in records[2]


def written(labels, tokenizer, outputs):
  """Predictions for texts that were written, one for each label."""
  task = make(labels)
  task.read_back(lambda text: tokenizer.decode(tokenizer.encode(text)))
  examples = [{'text': 't', 'label': label} for label in labels]
  predictions = {'output_ids': np.arange(len(labels)), 'outputs': np.array(outputs, object)}
  return [record['prediction'] for record in task.records(predictions, examples)]


def small_t5(tmp_path):
  """A published SentencePiece vocabulary, which collapses spaces and knows but its letters."""
  with open(tmp_path / 'spiece.model', 'wb') as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(['the fox and a dog'] * 9),
      model_writer=file,
      minloglevel=2,
      hard_vocab_limit=False,
      vocab_size=40,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
    )
  return Tokenizer.load(tmp_path)


def test_a_written_label_is_compared_as_the_tokenizer_reads_it_back(tmp_path):
  tokenizer = small_t5(tmp_path)
  labels = ('fox  a', 'dog')
  outputs = [tokenizer.decode(tokenizer.encode(label)) for label in labels]
  assert outputs[0] == 'fox a'
  assert written(labels, tokenizer, outputs) == list(labels)
  assert written(labels, tokenizer, ['fox', ' dog ']) == ['', 'dog']


@pytest.mark.parametrize(
  'labels, message',
  [
    (('fox a', 'fox  a'), "'fox a' and 'fox  a' are both written 'fox a' by the tokenizer"),
    (('dog', '{fox}'), "'{fox}' cannot be written: the tokenizer reads it back as '\ufffd"),
  ],
)
def test_labels_that_cannot_be_told_apart_or_written_are_named(tmp_path, labels, message):
  with pytest.raises(UserError, match=f'^config.task.labels: {message}'):
    written(labels, small_t5(tmp_path), labels)


def test_a_run_that_writes_labels_knows_how_its_tokenizer_writes_them(tmp_path):
  rows = ''.join(f'text {i}\t{label}\n' for i, label in enumerate(['It', 'it'] * 20))
  (tmp_path / 'rows.tsv').write_text('text\tlabel\n' + rows)
  changes = (('tokenizer.lowercase', 'True'),)
  with pytest.raises(UserError, match="config.task.labels: 'It' and 'it' are both written 'it'"):
    tiny.experiment('classify.py:text_to_text', tmp_path, changes)
  # A run that reads a label off has no such trouble.
  assert tiny.experiment('classify.py:encoder_decoder', tmp_path, changes).task.labels == (
    'It',
    'it',
  )
