"""Rows to examples, labels, and what is reported."""

import dataclasses

import numpy as np
import pytest

from flaxlm.config.schema import Config as ExperimentConfig
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
