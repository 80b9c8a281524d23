"""Words and tags of a row, and sentences put together again from their parts."""

import dataclasses
import json

import numpy as np
import pytest

from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.errors import UserError
from flaxlm.tasks.tagging import Config, Task

LABELS = ('B-X', 'I-X', 'O')


def make(labels=LABELS):
  base = ExperimentConfig(task=Config('tagging', labels))
  data = dataclasses.replace(base.data, text_column='tokens', label_column='tags')
  return Task(dataclasses.replace(base, data=data))


def row(words, tags=None):
  found = {'tokens': json.dumps(words)}
  return found if tags is None else found | {'tags': json.dumps(tags)}


def test_a_row():
  example = make().parse(row(['New', 'York', '.'], ['B-X', 'I-X', 'O']), 'f:1')
  assert example == {
    'text': 'New York .', 'words': ['New', 'York', '.'], 'label': ['B-X', 'I-X', 'O'],
  }  # fmt: skip
  assert 'label' not in make().parse(row(['a']), 'f:1', labelled=False)


@pytest.mark.parametrize(
  'bad, message',
  [
    (row(['a'], ['O', 'O']), "f:1: 2 tags in column 'tags' for 1 words"),
    (row(['a'], ['B-Z']), "unknown tag 'B-Z'"),
    (row([], []), 'no words'),
    (row(['a', ' '], ['O', 'O']), "word 2 in column 'tokens' is empty"),
    (row(['a']), "no column 'tags'"),
    ({'tokens': 'plain text', 'tags': '[]'}, 'must be a json list'),
  ],
)
def test_a_malformed_row_is_named(bad, message):
  with pytest.raises(UserError, match=message):
    make().parse(bad, 'f:1')


def test_a_text_is_no_sentence_of_conll_to_predict():
  def settle(*rows):
    task = make()
    task.settle([task.parse(row, 'f:1', labelled=False) for row in rows])

  text = row(['John'], ['Berlin']) | {'0': '["John"]', '1': '["lives"]', '2': '["Berlin"]'}
  with pytest.raises(UserError, match='--input: every sentence has one word'):
    settle(text, text)
  settle(text, text | {'tags': '["O"]'})
  settle(text, row(['New', 'York'], ['NN', 'NN']) | {'0': '["New", "York"]', '1': '["NN", "NN"]'})
  settle(row(['John'], ['X']) | {'0': '["John"]'})
  settle(row(['John']))


def test_a_label_is_named_once():
  with pytest.raises(UserError, match="config.task.labels: 'O' is there twice"):
    make(('O', 'B-X', 'O'))


def test_a_sentence_is_put_together_in_the_order_of_its_words():
  task = make()
  examples = [
    task.parse(row(['New', 'York', '.'], ['B-X', 'I-X', 'O']), 'f:1'),
    task.parse(row(['x'], ['O']), 'f:5'),
    task.parse(row(['to', 'predict']), 'f:9', labelled=False),
  ]
  predictions = {
    'example_ids': np.array([0, 0, 0, 1, 2, 2]),
    'word_ids': np.array([2, 0, 1, 0, 1, 0]),  # The end of a long sentence lay in an earlier row.
    'predicted': np.array([2, 0, 1, 0, 2, 0]),
  }
  records = list(task.records(predictions, examples))
  assert records[0]['prediction'] == ['B-X', 'I-X', 'O']
  assert records[0]['entities'] == [{'type': 'X', 'text': 'New York', 'words': [0, 2]}]
  assert records[2]['prediction'] == ['B-X', 'O'] and 'label' not in records[2]
  metrics = task.metrics(predictions, examples)
  assert metrics['accuracy'] == 0.75
  assert metrics['entity_precision_micro'] == 0.5 and metrics['entity_recall_micro'] == 1.0
  assert task.details(predictions, examples)['entity_types']['X']['targets'] == 1
  text = task.files(predictions, examples)['tags.conll'].decode()
  assert text == 'New B-X B-X\nYork I-X I-X\n. O O\n\nx O B-X\n\nto - B-X\npredict - O\n'
  # conlleval takes a blank between two columns; with -d it takes a tab.
  examples[1]['words'] = ['x y']
  assert task.files(predictions, examples)['tags.conll'].startswith(b'New\tB-X\tB-X\nYork\t')


def test_tags_that_mark_no_entities_have_an_accuracy_only():
  task = make(('NOUN', 'VERB'))
  examples = [task.parse(row(['a'], ['NOUN']), 'f:1')]
  predictions = {k: np.zeros(1, int) for k in ('example_ids', 'word_ids', 'predicted')}
  assert task.metrics(predictions, examples) == {'accuracy': 1.0}
  assert 'entities' not in next(task.records(predictions, examples))


def test_tags_are_those_of_training():
  examples = [{'label': ['O', 'B-X']}, {'label': ['I-X']}]
  assert make(()).discover(examples) == {'labels': ('B-X', 'I-X', 'O')}
  with pytest.raises(UserError, match='needs two tags'):
    make(()).discover(examples[1:])
