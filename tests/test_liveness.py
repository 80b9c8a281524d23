"""No option does nothing: another value of any field changes what a run does.

Every field of models, objectives, tasks, optimizer, data and tokenizer is walked. Another valid
value (of a choice: every other one) must change the batches, the shapes of the parameters, the
program of the step or that of the initialisation, in at least one recipe in which `when` says that
it is read. Programs are compared as they are lowered, without what no result depends on.
"""

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import threading

import jax
import numpy as np
import pytest
import tiny

from flaxlm.config import schema, tree
from flaxlm.config.field import SET
from flaxlm.data import pipeline
from flaxlm.data import tokenizer as tokenizers
from flaxlm.errors import UserError
from flaxlm.paths import leaf_paths

# The first that shows an effect decides, so the cheap ones come first.
PLACES = (
  'nanogpt_char.py',
  'gpt2.py:mini',
  'bert.py:mini',
  't5.py:mini',
  't5.py:v1_1_mini',
  'modernbert.py:mini',
  'xlnet.py:mini',
  'classify.py:encoder',
  'classify.py:decoder',
  'classify.py:encoder_decoder',
  'classify.py:text_to_text',
  'text_to_text.py:decoder',
  'text_to_text.py:encoder_decoder',
  'mixture.py',
  'glue.py:mrpc',
  'regress.py:encoder',
  'regress.py:decoder',
  'regress.py:encoder_decoder',
  'multi_label.py:encoder',
  'multi_label.py:decoder',
  'multi_label.py:encoder_decoder',
  'tag.py:encoder',
  'tag.py:decoder',
  'squad.py:encoder',
  'multiple_choice.py:encoder',
  'multiple_choice.py:decoder',
  'translate.py:encoder_decoder',
  'summarize.py:encoder_decoder',
)
# One layer shows as much as two, in half the time; the schedule's shape shows after the warm-up.
SMALL = (('model.num_layers', '1'), ('optimizer.warmup_steps', '1'))

# Values of texts and patterns, which no rule tells, and of fields whose neighbouring value would
# not show at this size. {} is the folder of the corpora.
VALUES = {
  'model.num_decoder_layers': ['2'],
  'model.attention_bias': ['False', 'True'],
  'model.mlp_bias': ['False'],
  'model.norm_eps': ['0.01'],
  'optimizer.decay_share': ['1.0'],
  'model.token_types': ['0', '2'],
  'model.relative_buckets': ['16'],
  'model.relative_max_distance': ['16'],
  'model.window': ['2'],
  'model.attention_kernel': ['splash'],
  'model.mlp_dropout_rate': ['0.3'],
  'model.rope_beta_fast': ['8.0'],
  'model.rope_original_length': ['100'],
  'model.rope_beta_slow': ['8.0'],
  'model.global_every': ['0', '2'],
  'optimizer.decay_exclude': [''],
  'data.train': ['{}/other.txt', '{}/rows.tsv'],
  'data.weights': ['0.7,0.3'],
  'data.validation': ['{}/other.txt', '{}/rows.tsv'],
  'data.text_column': ['other'],
  'data.label_column': ['topic'],
  'data.max_rows': ['40'],
  'tokenizer.path': ['{}/tokenizer'],
  'tokenizer.add': ['mask'],
  'tokenizer.train_megabytes': ['0.02'],
  'task.labels': ['good,bad', 'w,x,y,z', 'B-X,I-X,O,Q'],
  'task.pair_column': ['other'],
  'task.separator': [';'],
  'tuning.trainable': ['bias$'],
  'tuning.frozen': ['mlp/up'],
  'tuning.unfreeze_epochs': ['0.02'],
  'task.choice_columns': ['choices3'],
  'tuning.lora_targets': ['mlp/up'],
  'task.target_column': ['other'],
  'task.prefix': ['the '],
  'objective.members': ['x=span_corruption,r=span_corruption'],
  'objective.weights': ['0.3,0.7'],
  'objective.settings': ['x.noise_density=0.3'],
}
# What the recipes lack for a field to show: a corpus that has columns, a layer that is local.
FIRST = {
  'data.text_column': (('data.train', '{}/rows.tsv'),),
  'data.weights': (('data.train', 'a={0}/text.txt,b={0}/other.txt'),),
  'tokenizer.add': (('tokenizer.path', '{}/published'),),
  'model.adapter_placement': (('model.adapter_dim', '4'),),
  'model.global_every': (('model.window', '4'),),
  'tuning.lora_alpha': (('tuning.lora_rank', '2'),),
  'tuning.lora_targets': (('tuning.lora_rank', '2'),),
  'model.local_rope_theta': (('model.num_layers', '2'), ('model.window', '4')),
  'objective.pair_separators': (('task.pair_column', 'other'),),
}
# Fields that act outside of batches and programs, and the test that shows how.
ELSEWHERE = {
  'data.test': 'test_the_test_set_is_among_the_evaluation_sets',
  'data.cache_dir': 'test_the_cache_lies_where_it_is_said_to',
  'data.prefetch': 'test_so_many_batches_are_made_ahead',
  'data.num_workers': 'test_so_many_processes_make_batches',
  'data.on_bad_row': 'test_bad_rows_stop_the_run_or_are_left_out',
  'task.threshold': 'test_what_only_predictions_depend_on',
  'task.unanswerable': 'test_what_only_predictions_depend_on',
  'task.null_threshold': 'test_what_only_predictions_depend_on',
  'objective.max_answer_length': 'test_how_many_and_how_long_answers_are_kept',
  'task.bleu_tokenizer': 'test_how_written_texts_are_scored',
  'task.lead_sentences': 'test_how_written_texts_are_scored',
  'objective.n_best': 'test_how_many_and_how_long_answers_are_kept',
}
# Choices that show nothing on these data, and why.
SAME = {
  ('task.subset', 'stsb'): 'needs another objective; configs/glue.py:stsb has it',
  ('task.subset', 'rte'): 'reads the columns of mrpc',
  ('data.documents', 'row'): 'what `auto` does for tables',
  ('data.documents', 'blank_line'): 'what `auto` does for text',
}
# Fields that change how a program runs and not what it computes.
PROGRAM_ONLY = {'model.attention_kernel', 'model.remat', 'model.scan_layers'}
# Fields that change what is predicted and not what is learned; tests of the objective compare it.
PREDICTED_ONLY = {'objective.max_answer_length', 'objective.n_best'}


def can_be_read(rules, names):
  """Whether a field is read under one of the names of its node."""
  wanted = (rules.when or {}).get('name')
  return wanted is None or not names or bool({*wanted} & {*names})


def walk():
  """(dotted key, file or '', its class) of every field that can be set."""
  nodes = [('optimizer', '', schema.OptimizerConfig), ('data', '', schema.DataConfig)]
  nodes += [('tokenizer', '', schema.TokenizerConfig), ('tuning', '', schema.TuningConfig)]
  files = {}
  for node, package in tree.PACKAGES.items():
    classes = {}
    for name in tree.named_files(package):
      classes.setdefault(tree.node_class(node, name), []).append(name)
    nodes += [(node, names[0], cls) for cls, names in classes.items()]
    files |= classes
  return [
    (f'{node}.{name}', file, cls)
    for node, file, cls in nodes
    for name, (_, rules, _) in tree.fields(cls).items()
    if not rules.derived
    and not (file and name == 'name')
    and can_be_read(rules, files.get(cls, ()))
  ]


FIELDS = walk()
WALKED = {cls for _, _, cls in FIELDS}


def is_inherited(key, cls):
  """Whether the field is walked with the class that it comes from, too."""
  name = key.partition('.')[2]
  return any(base in WALKED and name in tree.fields(base) for base in cls.__mro__[1:])


QUICK_FIRST = [
  pytest.param(*field, marks=pytest.mark.full) if is_inherited(field[0], field[2]) else field
  for field in FIELDS
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tiny.write_corpus(tmp_path_factory.mktemp('liveness'))
  config = schema.TokenizerConfig(name='characters', sentinels=20)
  tokenizers.train(config, [(folder / 'other.txt').read_text()]).save(folder / 'tokenizer')
  (folder / 'published').mkdir()
  letters = ['<|endoftext|>', '\u0120', '.', *map(chr, range(65, 91)), *map(chr, range(97, 123))]
  vocab = {letter: id for id, letter in enumerate(letters)}
  (folder / 'published' / 'vocab.json').write_text(json.dumps(vocab))
  (folder / 'published' / 'merges.txt').write_text('#version: 0.2\n')
  return folder


# --------------------------------------------------------------------------- what a run would do


class Run:
  """What a config leads to, each part computed when it is asked for."""

  def __init__(self, config, folder):
    self.experiment = tiny.build(config, folder / 'no_run')

  @functools.cached_property
  def batches(self):
    """Digest of training batches and of the first of every evaluation set."""
    e = self.experiment
    found = {f'train {i}': e.train_data.batch(i) for i in (0, 1, 60)}
    found |= {name: data.batch(0) for name, data in e.eval_data.items()}
    sha = hashlib.sha256()
    for name, batch in found.items():
      for key in sorted(batch):
        sha.update(f'{name} {key} {batch[key].shape}'.encode() + batch[key].tobytes())
    return sha.hexdigest()

  @functools.cached_property
  def shapes(self):
    leaves = leaf_paths(self.experiment.abstract_state.params)
    return {path: (leaf.shape, leaf.dtype) for path, leaf in leaves.items()}

  @functools.cached_property
  def step(self):
    return self.experiment.train_step.lower(
      self.experiment.abstract_state, self.experiment.train_data.batch(0)
    ).as_text()

  @functools.cached_property
  def init(self):
    return self.experiment.init.lower(jax.random.key(0)).as_text()


@functools.lru_cache(maxsize=16)
def run(place, folder, changes):
  return Run(tiny.load(place, folder, SMALL + changes), folder)


def effect(base, other):
  """The first part of a run in which two differ, or ''."""
  parts = ('batches', 'shapes', 'step', 'init')
  return next((part for part in parts if getattr(base, part) != getattr(other, part)), '')


# --------------------------------------------------------------------------------- other values


def candidates(key, kind, rules, value, folder):
  """Texts of other values: of a choice all of them, else some of which the first valid one will do.

  Fails for a field of which neither the rules nor VALUES tell another value.
  """
  if key in VALUES:
    return [t for t in (text.format(folder) for text in VALUES[key]) if t != str(value)]
  if rules.choices is not None:
    return [str(choice) for choice in rules.choices if choice != value]
  if kind.item is bool:
    return [str(not value)]
  if kind.item is str or kind.is_tuple:
    pytest.fail(f'{key}: say in VALUES what else it can be')
  if value is None:
    found = [(rules.low or 1) * factor for factor in (1, 2, 16)]
  elif kind.item is int:
    found = [value + 1, 2 * value, value // 2, rules.low]
  else:
    found = [value / 2, 2 * value, 0.3, 0.01]
  return [str(x) for x in found if x is not None and x != value]


def siblings(config, key, rules):
  """What to set so that the field is read, as changes; None where that is another experiment."""
  node = key.partition('.')[0]
  changes = []
  for name, values in (rules.when or {}).items():
    name = name.removeprefix('config.') if name.startswith('config.') else f'{node}.{name}'
    value = tree.flatten(config)[name]
    if value in values or (SET in values and value):
      continue
    if values[0] == SET or name in ('model.name', 'task.name', 'objective.name'):
      return None
    changes.append((name, str(values[0])))
  return tuple(changes)


def bases(key, cls, rules, folder):
  """(recipe, changes after which the field is read); recipes where nothing is needed come first."""
  found = []
  first = tuple((name, text.format(folder)) for name, text in FIRST.get(key, ()))
  for place in PLACES:
    try:
      config = tiny.load(place, folder, SMALL + first)
    except UserError:
      continue  # It lacks a field of FIRST.
    if type(getattr(config, key.partition('.')[0])) is cls:
      changes = siblings(config, key, rules)
      found += [] if changes is None else [(place, first + changes)]
  if not found and key.startswith('objective.'):
    # An objective without a recipe of its own: on those of its family, by an override.
    name = (('objective.name', cls.__module__.rpartition('.')[2]),)
    for place in PLACES:
      changes = siblings(tiny.load(place, folder, SMALL + name), key, rules)
      found += [] if changes is None else [(place, name + changes)]
  assert found, f'{key}: no recipe has it'
  return sorted(found, key=lambda base: len(base[1]))


def attempts(key, cls, rules, folder, text):
  """(run as it is, run with the other value) of each recipe that takes it."""
  for place, changes in bases(key, cls, rules, folder):
    try:
      yield run(place, folder, changes), run(place, folder, (*changes, (key, text)))
    except UserError:
      continue  # Not a value for this recipe: another may take it.


def values_of(key, cls, folder):
  """(rules, other values) of a field, as seen from the first recipe that has it."""
  name = key.partition('.')[2]
  kind, rules, _ = tree.fields(cls)[name]
  place, changes = bases(key, cls, rules, folder)[0]
  config = tiny.load(place, folder, SMALL + changes)
  value = getattr(getattr(config, key.partition('.')[0]), name)
  return rules, candidates(key, kind, rules, value, folder)


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
  monkeypatch.setitem(globals(), 'PLACES', PLACES[:1])
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


# --------------------------------------------------------------------------------- in numbers


def numbers(experiment):
  """Parameters after initialisation and two steps, and the losses."""
  state = experiment.init_state()
  found = [jax.tree.map(np.array, state.params)]
  for i in range(2):
    state, metrics = experiment.train_step(state, experiment.put(experiment.train_data.batch(i)))
    found.append(np.array([metrics['loss'].value(), float(metrics['grad_norm'])]))
  return jax.tree.leaves([found, jax.tree.map(np.array, state.params)])


NODES = ('model.', 'objective.', 'optimizer.', 'tuning.')
NUMERIC = [f for f in FIELDS if f[0].startswith(NODES)]


@pytest.mark.full
@pytest.mark.parametrize(
  ('key', 'file', 'cls'),
  [f for f in NUMERIC if f[0] not in PROGRAM_ONLY | PREDICTED_ONLY],
  ids=lambda x: x if type(x) is str else '',
)
def test_another_value_changes_the_numbers(key, file, cls, folder):
  """Not only the program: losses or parameters of two steps come out otherwise."""
  rules, texts = values_of(key, cls, folder)
  for text in texts:
    tried = []
    for base, other in attempts(key, cls, rules, folder, text):
      if base.batches != other.batches or base.shapes != other.shapes:
        tried.append(True)
      else:
        pairs = zip(numbers(base.experiment), numbers(other.experiment), strict=True)
        tried.append(not all(np.array_equal(a, b) for a, b in pairs))
      if tried[-1]:
        break
    if tried or rules.choices is not None:
      assert any(tried), f'{key}={text} changes no number'
    if tried and rules.choices is None:
      break


@pytest.mark.full
@pytest.mark.parametrize('key', sorted(PROGRAM_ONLY))
def test_how_a_program_runs_changes_no_number(key, folder):
  cls = tree.node_class('model', 'decoder')
  rules, texts = values_of(key, cls, folder)
  for text in texts:
    for base, other in attempts(key, cls, rules, folder, text):
      pairs = zip(numbers(base.experiment), numbers(other.experiment), strict=True)
      for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)
      break
