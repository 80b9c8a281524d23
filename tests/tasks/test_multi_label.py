"""Lists of labels in a cell, and what is reported."""

import numpy as np
import pytest

from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.errors import UserError
from flaxlm.tasks.multi_label import Config, Task


def make(**fields):
  return Task(ExperimentConfig(task=Config('multi_label', **fields)))


@pytest.mark.parametrize(
  'cell, labels',
  [('["a", "b, c"]', ['a', 'b, c']), ('a, b', ['a', 'b']), ('', []), ('[]', []), ('a', ['a'])],
)
def test_cells(cell, labels):
  assert make().parse({'text': 't', 'label': cell}, 'f:1')['label'] == labels


def test_another_separator():
  assert make(separator='|').parse({'text': 't', 'label': 'a|b,c'}, 'f:1')['label'] == ['a', 'b,c']


@pytest.mark.parametrize('cell', ['["a", "q"]', 'a,q', 'a,,b', '[{}]', '["a"'])
def test_an_unknown_label_or_a_broken_list_is_named(cell):
  with pytest.raises(UserError, match='^f:1: '):
    make(labels=('a', 'b')).parse({'text': 't', 'label': cell}, 'f:1')


def test_labels_are_those_of_training():
  examples = [{'text': '', 'label': ['b']}, {'text': '', 'label': []}, {'text': '', 'label': ['a']}]
  assert make().discover(examples) == {'labels': ('a', 'b')}
  with pytest.raises(UserError, match='no row has a label'):
    make().discover(examples[1:2])


def test_a_label_is_predicted_from_the_threshold_on():
  task = make(labels=('a', 'b'), threshold=0.3)
  examples = [{'text': 't', 'label': ['a']}, {'text': 'u', 'label': ['b']}, {'text': 'v'}]
  predictions = {
    'example_ids': np.arange(3), 'probabilities': np.array([[0.3, 0.2], [0.4, 0.9], [0.1, 0.1]]),
  }  # fmt: skip
  records = list(task.records(predictions, examples))
  assert [record['prediction'] for record in records] == [['a'], ['a', 'b'], []]
  metrics = task.metrics(predictions, examples)
  assert metrics['subset_accuracy'] == 0.5 and metrics['precision_micro'] == 2 / 3
