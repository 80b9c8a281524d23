"""eval.py, which has the workdir only, says of every task what the run itself said."""

import numpy as np
import pytest
import tiny

from flaxlm.commands import _folder
from flaxlm.evaluation import evaluator

SHORT = (('evaluation.max_new_tokens', '4'),)
# Of the first two, the rows of training decide what no flag can set: labels, number of choices.
PLACES = (
  ('glue.py:mrpc', ()),
  ('multiple_choice.py:encoder', (('task.choice_columns', 'choices3'),)),
  *(
    pytest.param(place, changes, marks=pytest.mark.full)
    for place, changes in (
      ('classify.py:encoder', ()),
      ('glue.py:stsb', ()),
      ('glue.py:mrpc-text_to_text', SHORT),
      ('regress.py:encoder', ()),
      ('multi_label.py:encoder', ()),
      ('tag.py:encoder', ()),
      ('squad.py:encoder', ()),
      ('summarize.py:encoder_decoder', SHORT),
      ('text_to_text.py:decoder', ()),
      ('translate.py:encoder_decoder', SHORT),
    )
  ),
)


@pytest.mark.parametrize('place, changes', PLACES)
def test_evaluate_workdir_says_what_training_said(place, changes, tmp_path):
  folder = tiny.write_corpus(tmp_path)
  experiment = tiny.experiment(place, folder, (('data.max_rows', '60'), *changes))
  params = tiny.random_state(experiment).params
  expected = evaluator.evaluate(experiment, params, 'validation').metrics
  _folder.write_run(folder / 'run', experiment.config, experiment.tokenizer, params)
  found = evaluator.evaluate_workdir(str(folder / 'run'))['validation']
  assert len(expected) > 1
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
  'place, file', [('gpt2.py:mini', 'text.txt'), ('summarize.py:encoder_decoder', 'rows.tsv')]
)
def test_what_is_held_out_is_known_by_its_content(place, file, tmp_path):
  folder = tiny.write_corpus(tmp_path)
  built = lambda *changes, **options: tiny.experiment(place, folder, changes, **options)
  held_out = built().held_out
  assert set(held_out) == {'validation'}
  assert built(training=False).held_out == held_out
  assert built(('data.validation', str(folder / file))).held_out == {}
  first, *lines = (folder / file).read_text().splitlines()
  (folder / file).write_text('\n'.join([first, *lines[::-1]]) + '\n')
  assert built(training=False).held_out['validation'] != held_out['validation']
