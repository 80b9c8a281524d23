"""What evaluation writes: the same for any size of batches, and as decoding alone writes it."""

import numpy as np
import pytest
import tiny

from flaxlm.evaluation import evaluator, writing


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('writing'))


def evaluated(place, folder, changes, **options):
  experiment = tiny.experiment(
    place, folder, (('data.max_rows', '60'), ('evaluation.max_new_tokens', '6'), *changes)
  )
  state = tiny.random_state(experiment)
  return experiment, evaluator.evaluate(experiment, state.params, 'validation', **options)


@pytest.mark.full
@pytest.mark.parametrize('place', ['classify.py:text_to_text', 'translate.py:encoder_decoder'])
def test_texts_and_metrics_do_not_depend_on_the_size_of_batches(place, folder):
  experiment, one = evaluated(place, folder, (('evaluation.batch_size', '1'),))
  _, four = evaluated(place, folder, (('evaluation.batch_size', '4'),))
  assert list(one.predictions['outputs']) == list(four.predictions['outputs'])
  assert one.predictions['output_ids'].tolist() == list(range(6))
  assert set(map(str, one.predictions['outputs'])) != {''}
  assert set(one.metrics) == set(four.metrics)
  for name, value in one.metrics.items():
    np.testing.assert_allclose(four.metrics[name], value, rtol=1e-5, err_msg=name)
  wanted = {'bleu', 'chrf'} if place.startswith('translate') else {'mcc', 'f1_macro'}
  assert wanted <= set(one.metrics)
  records = list(experiment.task.records(one.predictions, experiment.examples['validation']))
  assert [record['output'] for record in records] == list(one.predictions['outputs'])


@pytest.mark.full
def test_only_the_first_are_written_where_that_is_asked(folder):
  experiment, two = evaluated('translate.py:decoder', folder, (), max_written=2)
  _, all_of_them = evaluated('translate.py:decoder', folder, ())
  assert two.predictions['output_ids'].tolist() == [0, 1]
  assert list(two.predictions['outputs']) == list(all_of_them.predictions['outputs'][:2])
  _, none = evaluated('translate.py:decoder', folder, (), max_written=0)
  assert 'bleu' not in none.metrics and 'bleu' in two.metrics
  state = tiny.random_state(experiment)
  stopped = writing.write(experiment, state.params, 'validation', [0, 1], lambda: True)
  assert stopped is None


@pytest.mark.full
def test_a_search_finds_texts_at_least_as_likely(folder):
  """By beams of the same place, and the best of many beams."""
  from flaxlm.decoding.beam import Beam, search
  from flaxlm.decoding.cache import Reader

  changes = (('evaluation.num_beams', '3'), ('evaluation.length_penalty', '0.0'))
  experiment, found = evaluated('translate.py:encoder_decoder', folder, changes, max_written=4)
  _, greedy = evaluated('translate.py:encoder_decoder', folder, (), max_written=4)
  assert list(found.predictions['outputs']) != list(greedy.predictions['outputs'])
  reader = Reader.of(experiment.model, tiny.random_state(experiment).params)
  prompts = experiment.objective.prompts(experiment.examples['validation'][:4], 6)
  best = [texts[0] for texts in search(reader, prompts, Beam(3, 6, 0.0))]
  decoded = [experiment.tokenizer.decode(text.tokens).strip() for text in best]
  assert decoded == list(found.predictions['outputs'])


def test_what_classifies_writes_nothing(folder):
  experiment = tiny.experiment('classify.py:encoder', folder, (('data.max_rows', '60'),))
  assert not writing.writes(experiment)
