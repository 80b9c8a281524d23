"""All choices of an item share a row, and its softmax is over them alone."""

import numpy as np
import pytest
from objective_setup import byte_tokenizer

from flaxlm.config import tree
from flaxlm.config.tree import load_module
from flaxlm.data import packing, pipeline
from flaxlm.data.pipeline import PackedItems
from flaxlm.errors import UserError

T = byte_tokenizer()


def chooser(model='encoder', choices=3, **changes):
  config = tree.new(model=model, objective='multiple_choice', task='multiple_choice')
  config.total_steps, config.model.max_length, config.data.train = 1, 64, 'r.jsonl'
  for key, value in changes.items():
    node, leaf = key.split('__')
    config[node][leaf] = value
  tree_config = tree.from_config_dict(config)
  object.__setattr__(tree_config.task, 'num_choices', choices)
  return load_module('flaxlm.objectives', 'multiple_choice').Objective(tree_config, T)


EXAMPLES = [
  {'text': 'he sat', 'choices': ['down', 'up', 'x'], 'label': 1},
  {'text': 'so', 'choices': ['a', 'bb'], 'label': 0},
  {'text': 'to', 'choices': ['p', 'q']},
  {'text': 'and', 'choices': ['c', 'd', 'e'], 'label': 2},
]


def batch_of(objective, examples):
  packed = PackedItems(objective, objective.items(examples), None)
  rows = [[s for item in packed[row] for s in objective.features(item, None)]
          for row in range(len(packed))]  # fmt: skip
  return packing.pack_rows(rows, objective.streams)


@pytest.mark.parametrize('family', ['encoder', 'decoder'])
def test_a_choice_is_a_segment_of_its_own(family):
  batch = batch_of(chooser(family), EXAMPLES[:1])
  segments = batch['segment_ids'][0]
  texts = [T.decode(batch['inputs'][0][segments == s]) for s in (1, 2, 3)]
  assert texts == ['he satdown', 'he satup', 'he satx']
  for s in (1, 2, 3):
    positions = batch['positions'][0][segments == s]
    assert positions.tolist() == list(range(len(positions)))
  assert batch['targets'][0, :3].tolist() == [0, 1, 0]
  places = batch['target_positions'][0, :3]
  assert segments[places].tolist() == [1, 2, 3]
  marks = [T.eos_id] * 3 if family == 'decoder' else [T.cls_id] * 3
  assert batch['inputs'][0][places].tolist() == marks


def test_the_softmax_is_over_the_choices_of_an_item():
  objective = chooser()
  batch = batch_of(objective, EXAMPLES)
  outputs = np.random.default_rng(0).normal(size=(*batch['targets'].shape, 1)).astype(np.float32)
  expected, right, log_ps = 0.0, 0, {}
  for number, example in enumerate(EXAMPLES):
    own = (batch['example_ids'] == number) & (batch['example_weights'] > 0)
    x = outputs[..., 0][own].astype(np.float64)
    assert len(x) == len(example['choices'])
    log_ps[number] = x - np.log(np.exp(x).sum())
    if 'label' in example:
      expected -= log_ps[number][example['label']]
      right += x.argmax() == example['label']
  totals, metrics = objective.losses(outputs, batch)
  np.testing.assert_allclose(totals['loss'], expected, rtol=1e-5)
  assert objective.weights(batch)['loss'] == metrics['loss'].weight == 3
  assert float(metrics['accuracy'].total) == right
  found = objective.predict(outputs, batch)
  assert found['weights'].sum() == 10  # The item without a label is predicted too.
  for number, wanted in log_ps.items():
    own = (batch['example_ids'] == number) & (batch['example_weights'] > 0)
    np.testing.assert_allclose(np.asarray(found['log_probabilities'])[own], wanted, rtol=1e-5)


def test_choices_that_do_not_fit_lose_the_beginning_of_the_text(capsys):
  objective = chooser()
  example = {'text': 'x' * 50 + 'end', 'choices': ['one', 'two', 'three'], 'label': 0}
  (item,) = objective.items([example])
  assert objective.lengths(item)['inputs'] <= 64
  for (text, choice), whole in zip(item['pairs'], example['choices'], strict=True):
    assert T.decode(text).endswith('end') and T.decode(choice) == whole
  assert ' choices do not fit' in capsys.readouterr().err
  with pytest.raises(UserError, match='no room for 16 choices'):
    chooser(choices=16)


def test_rows_may_be_longer_than_the_table_of_positions():
  """Positions begin anew in each choice."""
  objective = chooser(data__max_length=256)
  assert objective.longest == 64 and objective.max_length == 256
  assert chooser(choices=2).longest == 32


def test_items_of_several_segments_pass_the_pipeline():
  objective = chooser()
  config = tree.new(model='encoder', objective='multiple_choice', task='multiple_choice')
  config.total_steps, config.data.train, config.global_batch_size = 1, 'r.jsonl', 2
  packed = PackedItems(objective, objective.items(EXAMPLES), None)
  data = pipeline.EvalPipeline(tree.from_config_dict(config), objective, packed)
  batches = list(data.batches())
  assert sum(batch['example_weights'].sum() for batch in batches) == 10
