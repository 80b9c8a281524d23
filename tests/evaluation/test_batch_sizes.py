"""Every task's evaluation is the same for any size of batches, with a ragged last one."""

import numpy as np
import pytest
import tiny

from flaxlm.evaluation import evaluator

PLACES = (
  'tag.py:encoder',
  *(
    pytest.param(place, marks=pytest.mark.full)
    for place in (
      'classify.py:encoder',
      'regress.py:encoder_decoder',
      'multi_label.py:encoder',
      'squad.py:encoder',
      'multiple_choice.py:encoder',
    )
  ),
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('batch_sizes'))


def evaluated(place, folder, size):
  changes = (('data.max_rows', '150'), ('evaluation.batch_size', str(size)))
  experiment = tiny.experiment(place, folder, changes)
  rows = len(experiment.eval_data['validation'].rows)
  state = tiny.random_state(experiment)
  return rows, evaluator.evaluate(experiment, state.params, 'validation')


@pytest.mark.parametrize('place', PLACES)
def test_metrics_do_not_depend_on_the_size_of_batches(place, folder):
  rows, one = evaluated(place, folder, 1)
  size = next(size for size in (3, 4, 5) if rows % size)  # The last batch is ragged.
  _, many = evaluated(place, folder, size)
  assert set(one.metrics) == set(many.metrics) and len(one.metrics) > 1
  for name, value in one.metrics.items():
    np.testing.assert_allclose(many.metrics[name], value, rtol=1e-5, err_msg=name)
  numbers = one.predictions['example_ids']
  np.testing.assert_array_equal(many.predictions['example_ids'], numbers)
  assert set(numbers.tolist()) == set(range(15))
