"""Text to text: how a row is read, and scores against sums by hand."""

import numpy as np
import pytest

from flaxlm.config import tree
from flaxlm.errors import UserError
from flaxlm.tasks.text_to_text import Task


def task(**fields):
  config = tree.new(model='decoder', objective='completion', task='text_to_text')
  config.total_steps = 1
  config.data.train = 'rows.tsv'
  config.task.update(fields)
  return Task(tree.from_config_dict(config))


def test_a_row_is_read_with_its_prefix():
  row = {'text': 'a cat', 'answer': 'yes', 'n': '1'}
  example = task(target_column='answer', prefix='is it? ').parse(row, 'x.tsv:2')
  assert example == {'text': 'is it? a cat', 'target': 'yes'}
  assert task().texts(example) == ['is it? a cat', 'yes'] and task().discover([example]) == {}


@pytest.mark.parametrize(
  'row, message',
  [
    ({'text': 'a'}, r"x.tsv:2: no column 'target'.*config\.task\.target_column .* its number"),
    ({'target': 'a'}, r"x.tsv:2: no column 'text'.*config\.data\.text_column"),
    ({'text': 'a', 'target': ''}, r"x.tsv:2: the target in column 'target' is empty"),
  ],
)
def test_mistakes_name_the_place(row, message):
  with pytest.raises(UserError, match=message):
    task().parse(row, 'x.tsv:2')


def test_a_row_whose_target_is_to_be_written_needs_none():
  read = lambda row: task(prefix='to: ').parse(row, 'x.tsv:2', labelled=False)
  assert read({'text': 'a'}) == {'text': 'to: a'}
  assert task().texts(read({'text': 'a'})) == ['to: a']
  assert read({'text': 'a', 'target': 'b'}) == {'text': 'to: a', 'target': 'b'}
  with pytest.raises(UserError, match='x.tsv:2: no column'):
    read({'target': 'b'})


def test_scores():
  examples = [{'text': str(i), 'target': str(i)} for i in range(4)]
  predictions = {
    'example_ids': np.array([0, 0, 1, 1, 1, 3]),
    'nll': np.array([1.0, 3.0, 0.5, 0.5, 0.5, 7.0], np.float32),
    'correct': np.array([1, 1, 1, 0, 1, 1.0], np.float32),
    'ends': np.array([0, 1, 0, 0, 1, 1], bool),
  }
  assert task().metrics(predictions, examples) == {'exact_match': pytest.approx(2 / 3)}
  cut = predictions | {'ends': np.array([0, 1, 0, 0, 1, 0], bool)}
  assert task().metrics(cut, examples) == {'exact_match': pytest.approx(1 / 3)}
  records = list(task().records(predictions, examples))
  assert [r['text'] for r in records] == ['0', '1', '3']
  assert [r['loss'] for r in records] == [2.0, 0.5, 7.0]
  assert [r['exact_match'] for r in records] == [True, False, True]
  assert task().details(predictions, examples) == {}
