"""Numbers as labels, and what is reported."""

import dataclasses
import math

import numpy as np
import pytest

from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.errors import UserError
from flaxlm.tasks.text_regression import Config, Task


def make(pair='', **data):
  base = ExperimentConfig(task=Config('text_regression', pair))
  return Task(dataclasses.replace(base, data=dataclasses.replace(base.data, **data)))


def test_a_row_is_one_text_or_two_and_a_number():
  row = {'text': 'a', 'other': 'b', 'label': ' 2.5 '}
  assert make().parse(row, 'f:2') == {'text': 'a', 'label': 2.5}
  assert make('other').parse(row, 'f:2') == {'text': 'a', 'text_pair': 'b', 'label': 2.5}
  assert make().parse({'text': 'a'}, 'f:2', labelled=False) == {'text': 'a'}


@pytest.mark.parametrize(
  'row, message',
  [
    ({'text': 'a', 'label': 'good'}, "f:2: the label in column 'label' must be a number"),
    ({'text': 'a', 'label': 'nan'}, 'must be a number'),
    ({'text': 'a', 'label': ''}, 'must be a number'),
    ({'text': '', 'label': '1'}, "the text in column 'text' is empty"),
    ({'txt': 'a', 'label': '1'}, "no column 'text'.*config.data.text_column"),
  ],
)
def test_a_malformed_row_is_named(row, message):
  with pytest.raises(UserError, match=message):
    make().parse(row, 'f:2')


def test_reports_the_labelled_and_records_all():
  examples = [{'text': 'a', 'label': 1.0}, {'text': 'b'}, {'text': 'c', 'label': 3.0}]
  predictions = {'example_ids': np.arange(3), 'values': np.array([0.0, 9.0, 1.0])}
  metrics = make().metrics(predictions, examples)
  assert math.isclose(metrics['pearson'], 1.0) and metrics['mean_absolute_error'] == 1.5
  records = list(make().records(predictions, examples))
  assert records[1] == {'text': 'b', 'prediction': 9.0}
