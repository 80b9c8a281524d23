"""What a run reads, and what tells that it has changed."""

import numpy as np

from flaxlm.config import tree
from flaxlm.data.bad_rows import BadRows
from flaxlm.training import inputs


def test_the_digest_of_rows_sees_every_value_and_no_address():
  rows = lambda label, number: [
    {'text': 'a', 'label': 0, 'other': object()},
    {'text': 'b', 'label': label, 'spans': np.array([1, number])},
  ]
  first = inputs.rows_digest(rows(1, 2))
  assert inputs.rows_digest(rows(1, 2)) == first
  changed = (rows(0, 2), rows(1, 3), rows(1, 2)[::-1], rows(1, 2)[:1])
  assert len({first, *map(inputs.rows_digest, changed)}) == 5


def test_a_label_may_be_only_in_rows_that_are_held_out(tmp_path, capsys):
  held_out = 0
  for rare in range(10):
    labels = ['ab'[i % 2] for i in range(10)]
    labels[rare] = 'c'
    file = tmp_path / f'{rare}.csv'
    file.write_text('text,label\n' + ''.join(f'x,{label}\n' for label in labels))
    config = tree.new(model='encoder', objective='classification', task='text_classification')
    config.total_steps, config.data.train, config.data.holdout = 1, str(file), 0.3
    config, examples = inputs.read_examples(tree.from_config_dict(config), True, BadRows('error'))
    assert config.task.labels == ('a', 'b', 'c') and len(examples['validation']) == 3
    held_out += any(example['label'] == 'c' for example in examples['validation'])
    said = capsys.readouterr().err
    number = sum(example['label'] == 'a' for example in examples['train'])
    assert f'data.train: 3 labels: a ({number}), b (' in said
  assert held_out == 3
