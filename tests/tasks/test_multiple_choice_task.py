"""Choices and labels of a row, and what is reported."""

import json

import numpy as np
import pytest

from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.errors import UserError
from flaxlm.tasks.multiple_choice import Config, Task


def make(**fields):
  return Task(ExperimentConfig(task=Config('multiple_choice', **fields)))


def row(label=None, choices=('up', 'down', 'left')):
  found = {'text': 'he sat', 'choices': json.dumps(choices)}
  return found if label is None else found | {'label': label}


@pytest.mark.parametrize(
  'label, number', [('0', 0), ('2', 2), ('B', 1), ('c', 2), ('down', 1), (' up ', 0)]
)
def test_a_label_is_a_number_a_letter_or_a_text(label, number):
  assert make().parse(row(label), 'f:1')['label'] == number


def test_a_number_that_is_also_the_text_of_another_choice_is_no_label():
  choices = ('1', '2', '3')
  for label in ('1', '2'):
    with pytest.raises(UserError, match=f'f:1: the label {label!r} is the number of one choice'):
      make().parse(row(label, choices), 'f:1')
  found = [make().parse(row(label, choices), 'f:1')['label'] for label in ('0', '3', 'b')]
  assert found == [0, 2, 1]
  # A choice by both, and a digit that is no number.
  assert make().parse(row('1', ('0', '1')), 'f:1')['label'] == 1
  with pytest.raises(UserError, match='is none of the 2 choices'):
    make().parse(row('\u00b2', ('a', 'b')), 'f:1')


def test_a_letter_that_is_also_the_text_of_another_choice_is_no_label():
  grades = ('D', 'C', 'B', 'A')
  with pytest.raises(UserError, match="f:1: the label 'A' is the letter of one .* give its number"):
    make().parse(row('A', grades), 'f:1')
  assert make().parse(row('0', grades), 'f:1')['label'] == 0
  assert make().parse(row('A', ('A', 'B')), 'f:1')['label'] == 0


def test_choices_in_columns_of_their_own():
  task = make(choice_columns=('ending0', 'ending1'))
  found = task.parse({'text': 't', 'ending0': 'a', 'ending1': 'b', 'label': '1'}, 'f:1')
  assert found == {'text': 't', 'choices': ['a', 'b'], 'label': 1}
  with pytest.raises(UserError, match="no column 'ending1'.*config.task.choice_columns"):
    task.parse({'text': 't', 'ending0': 'a', 'label': '0'}, 'f:1')


@pytest.mark.parametrize(
  'bad, message',
  [
    (row('3'), "label '3' is none of the 3 choices"),
    (row('right'), "label 'right' is none of"),
    (row('²'), "label '²' is none of"),
    (row('ß'), "label 'ß' is none of"),
    (row('0', ['one']), '1 choices, but there must be at least 2'),
    (row('0', ['a', 'b', 'c', 'd']), '4 choices, but there must be at most 3'),
    (row('0', ['a', '']), r'choice 1 \(from 0\) is empty'),
    ({'text': 't', 'choices': 'a or b', 'label': '0'}, 'must be a json list'),
  ],
)
def test_a_malformed_row_is_named(bad, message):
  with pytest.raises(UserError, match=f'^f:1: .*{message}'):
    make(num_choices=3).parse(bad, 'f:1')


def test_reports_items():
  task = make()
  examples = [task.parse(row('1'), 'f:1'), task.parse(row('0'), 'f:2')]
  examples.append(task.parse(row(), 'f:3', labelled=False))
  log_p = np.log([[0.2, 0.7, 0.1], [0.3, 0.5, 0.2], [0.1, 0.1, 0.8]])
  order = np.random.default_rng(0).permutation(9)
  predictions = {
    'example_ids': np.repeat(np.arange(3), 3)[order],
    'choice_ids': np.tile(np.arange(3), 3)[order],
    'log_probabilities': log_p.ravel()[order],
  }
  assert task.metrics(predictions, examples) == {'accuracy': 0.5}
  records = list(task.records(predictions, examples))
  assert [record['prediction'] for record in records] == [1, 1, 2]
  assert records[0]['probabilities'] == [0.2, 0.7, 0.1] and 'label' not in records[2]
  assert task.discover(examples) == {'num_choices': 3}
