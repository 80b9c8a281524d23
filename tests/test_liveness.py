"""No option does nothing: another value of any field changes what a run does.

Every field of models, objectives, tasks, optimizer, data and tokenizer is walked. Another valid
value (of a choice: every other one) must change the batches, the shapes of the parameters, the
program of the step or that of the initialisation, in at least one recipe in which `when` says that
it is read. Programs are compared as they are lowered, without what no result depends on.
"""

import dataclasses
import multiprocessing
import threading

import jax
import liveness_walk
import numpy as np
import pytest
import tiny
from liveness_tables import ELSEWHERE, PLACES, PREDICTED_ONLY, PROGRAM_ONLY, SAME, SMALL, VALUES
from liveness_walk import FIELDS, attempts, effect, is_inherited, run, values_of

from flaxlm.config import schema, tree
from flaxlm.data import pipeline
from flaxlm.errors import UserError

QUICK_FIRST = [
  pytest.param(*field, marks=pytest.mark.full) if is_inherited(field[0], field[2]) else field
  for field in FIELDS
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return liveness_walk.write_corpus(tmp_path_factory.mktemp('liveness'))


@pytest.mark.parametrize(
  ('key', 'file', 'cls'), QUICK_FIRST, ids=lambda x: x if type(x) is str else ''
)
def test_another_value_changes_something(key, file, cls, folder):
  if key in ELSEWHERE:
    assert callable(globals()[ELSEWHERE[key]])
    return
  rules, texts = values_of(key, cls, folder)
  valid = 0
  for text in texts:
    if (key, text) in SAME:
      continue
    tried = [effect(*pair) for pair in attempts_until_effect(key, cls, rules, folder, text)]
    valid += bool(tried)
    if tried or rules.choices is not None:
      assert any(tried), f'{key}={text} changes nothing'
    if tried and rules.choices is None:
      break
  assert valid, f'{key}: none of {texts} is valid: say in VALUES what else it can be'


def attempts_until_effect(key, cls, rules, folder, text):
  for base, other in attempts(key, cls, rules, folder, text):
    yield base, other
    if effect(base, other):
      return


def test_the_walk_finds_the_fields():
  keys = {key for key, _, _ in FIELDS}
  assert keys >= {'model.rope_theta', 'objective.mask_rate', 'objective.noise_density'}
  assert keys >= {'optimizer.b2', 'data.holdout', 'tokenizer.lowercase', 'task.labels'}
  assert len(FIELDS) > 70
  assert not {*VALUES, *ELSEWHERE, *PROGRAM_ONLY, *PREDICTED_ONLY} - keys
  assert not {key for key, _ in SAME} - keys


@pytest.mark.parametrize('node', tree.PACKAGES)
def test_names_lead_to_other_modules(node, folder):
  """`name` of model, objective and task: another file is another class with another program."""
  config = tiny.load('classify.py:encoder', folder, SMALL)
  files = [n for n in tree.named_files(tree.PACKAGES[node]) if n != getattr(config, node).name]
  assert files or node == 'task'
  base = run('classify.py:encoder', folder, ())
  for name in files:
    place = {'objective': 'bert.py:mini'}.get(node, 'classify.py:encoder')
    try:
      other = run(place, folder, ((f'{node}.name', name),))
    except UserError as error:
      # What does not go together: a trunk, text without labels, rows of another task.
      named = {'objective': 'config.task.name:', 'task': 'rows.tsv:'}.get(node, '')
      assert f'config.{node}.' in str(error) or (named and named in str(error))
      continue
    assert effect(base, other)


# ------------------------------------------------------------------------ what acts elsewhere


def test_the_test_set_is_among_the_evaluation_sets(folder):
  place = 'nanogpt_char.py'
  without = tiny.experiment(place, folder, training=False)
  config = tiny.load(place, folder, (('data.test', f'{folder}/other.txt'),))
  found = tiny.build(config, folder / 'no_run', training=False)
  assert 'test' not in without.eval_data
  assert found.eval_data['test'].num_bytes == len((folder / 'other.txt').read_bytes())


def test_the_cache_lies_where_it_is_said_to(folder, tmp_path):
  tiny.experiment('nanogpt_char.py', folder, (('data.cache_dir', f'{tmp_path}/here'),))
  names = {path.name for path in (tmp_path / 'here').iterdir()}
  assert names >= {'stores', 'tokenizers'}


@pytest.mark.parametrize('ahead', [0, 3])
def test_so_many_batches_are_made_ahead(folder, monkeypatch, ahead):
  """After the second batch was taken, `ahead` more were begun."""
  data = tiny.experiment('nanogpt_char.py', folder, (('data.prefetch', str(ahead)),)).train_data
  made, enough = [], threading.Event()
  original = pipeline.Pipeline.batch

  def batch(self, step):
    made.append(step)
    if len(made) == 2 + ahead:
      enough.set()
    return original(self, step)

  monkeypatch.setattr(pipeline.Pipeline, 'batch', batch)
  batches = data.iterate(5)
  found = [next(batches), next(batches)]
  assert enough.wait(30)
  batches.close()
  assert made == list(range(5, 7 + ahead))
  np.testing.assert_array_equal(found[1]['inputs'], original(data, 6)['inputs'])


def test_so_many_processes_make_batches(folder):
  data = tiny.experiment('nanogpt_char.py', folder, (('data.num_workers', '2'),)).train_data
  before = len(multiprocessing.active_children())
  batches = data.iterate(5)
  assert len(multiprocessing.active_children()) == before + 2
  np.testing.assert_array_equal(next(batches)['inputs'], data.batch(5)['inputs'])
  batches.close()
  assert len(multiprocessing.active_children()) == before


def test_bad_rows_stop_the_run_or_are_left_out(folder, tmp_path):
  lines = (folder / 'rows.tsv').read_text().splitlines(keepends=True)
  lines[7] = '\tgood\tan empty text\tx\ty\n'
  (tmp_path / 'rows.tsv').write_text(''.join(lines))
  changes = (('data.train', f'{tmp_path}/rows.tsv'), ('tokenizer.path', f'{folder}/tokenizer'))
  with pytest.raises(UserError, match=r"rows.tsv:8: the text in column 'text' is empty"):
    tiny.experiment('classify.py:encoder', folder, changes)
  found = tiny.experiment('classify.py:encoder', folder, (*changes, ('data.on_bad_row', 'skip')))
  assert found.skipped == {'train': 1}
  assert sum(map(len, found.examples.values())) == tiny.DOCUMENTS - 1


def records(place, folder, change, predictions, example, **decided):
  """What a recipe's task makes of predictions, with one field changed."""
  config = tiny.load(place, folder, (change,))
  task = dataclasses.replace(config.task, **decided)
  module = tree.load_module('flaxlm.tasks', config.task.name)
  return list(module.Task(dataclasses.replace(config, task=task)).records(predictions, [example]))


def test_what_only_predictions_depend_on(folder):
  """The threshold of multi-label classification, and when a question has no answer."""
  one = {'example_ids': np.zeros(1, int)}
  for threshold, labels in (('0.5', []), ('0.3', ['x', 'y'])):
    change, predictions = ('task.threshold', threshold), {'probabilities': np.full((1, 2), 0.4)}
    example, labelled = {'text': 't'}, {'labels': ('x', 'y')}
    place = 'multi_label.py:encoder'
    (record,) = records(place, folder, change, one | predictions, example, **labelled)
    assert record['prediction'] == labels
  example = {'id': '1', 'question': 'q', 'text': 'abc'}
  span = {'scores': np.ones((1, 1)), 'starts': np.zeros((1, 1), int), 'ends': np.full((1, 1), 3)}
  predictions = one | span | {'null_scores': np.full(1, 1.5)}
  for change, answer in (
    (('task.unanswerable', 'True'), ''),
    (('task.unanswerable', 'False'), 'abc'),
    (('task.null_threshold', '0.6'), 'abc'),
    (('task.null_threshold', '0.4'), ''),
  ):
    decided = {} if change[0] == 'task.unanswerable' else {'unanswerable': True}
    (record,) = records('squad.py:encoder', folder, change, predictions, example, **decided)
    assert record['prediction'] == answer


def test_how_written_texts_are_scored(folder):
  """Words of BLEU, and sentences of the baseline of summaries."""

  def details(place, change):
    config = tiny.load(place, folder, (change,))
    task = tree.load_module('flaxlm.tasks', config.task.name).Task(config)
    example = task.parse({'text': 'One. Two.', 'target': 'one two'}, 'f:1')
    one = {'output_ids': np.zeros(1, int), 'outputs': np.array(['x'], object)}
    return task.details(one, [example])

  place = 'translate.py:encoder_decoder'
  signature = details(place, ('task.bleu_tokenizer', 'char'))['bleu_signature']
  assert 'tok:char' in signature
  place = 'summarize.py:encoder_decoder'
  assert set(details(place, ('task.lead_sentences', '1'))) == {'lead_1'}
  assert details(place, ('task.lead_sentences', '2'))['lead_2']['rouge1'] == 1.0


def test_how_many_and_how_long_answers_are_kept(folder):
  """In the program of an evaluation."""

  def program(*changes):
    e = run('squad.py:encoder', folder, changes).experiment
    params = e.abstract_state.params
    return e.eval_step.lower(params, e.eval_data['validation'].batch(0), None).as_text()

  base = program()
  for change in (('objective.n_best', '3'), ('objective.max_answer_length', '2')):
    assert program(change) != base


# ------------------------------------------------------------------------ what the walk must find


def test_a_dead_computation_is_no_effect():
  """Lowering drops what no result depends on: a field that feeds it would be found out."""

  def lowered(factor):
    inner = jax.jit(lambda x: (x + 1, x * factor))
    return jax.jit(lambda x: inner(x)[0]).lower(1.0).as_text()

  assert lowered(2.0) == lowered(3.0)


def test_a_field_that_nothing_reads_is_found(folder, monkeypatch):
  """Were the step built without clipping, clip_norm would show nowhere."""
  from flaxlm.training import experiment

  def deaf(config, total_steps, **kwargs):
    return original(dataclasses.replace(config, clip_norm=1.0), total_steps, **kwargs)

  original = experiment.make_optimizer
  monkeypatch.setattr(experiment, 'make_optimizer', deaf)
  monkeypatch.setattr(liveness_walk, 'PLACES', PLACES[:1])
  run.cache_clear()
  try:
    with pytest.raises(AssertionError, match='optimizer.clip_norm=0.5 changes nothing'):
      test_another_value_changes_something(
        'optimizer.clip_norm', '', schema.OptimizerConfig, folder
      )
  finally:
    run.cache_clear()


def test_a_field_that_cannot_be_varied_is_found(folder, monkeypatch):
  monkeypatch.delitem(VALUES, 'data.text_column')
  with pytest.raises(pytest.fail.Exception, match='data.text_column: say in VALUES'):
    test_another_value_changes_something('data.text_column', '', schema.DataConfig, folder)
