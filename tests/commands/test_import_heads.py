"""`import` and `export` of heads of tasks: the run that they become, and the way back."""

import importlib
import json

import numpy as np
import pytest
import safetensors.numpy
from public_folder import BERT, WORDS, raw, run, write

from flaxlm.commands import _reference
from flaxlm.errors import UserError
from flaxlm.evaluation import evaluator
from flaxlm.interop import convert

# Class, what else config.json says -> objective and task, columns of the rows.
NAMED = {'id2label': {'0': 'O', '1': 'B-X', '2': 'I-X'}}
HEADS = {
  'tags': ('TokenClassification', NAMED, 'tagging', 'tagging', ('tokens', 'tags')),
  'span': ('QuestionAnswering', {}, 'span_qa', 'question_answering', ('text', 'label')),
  'choices': ('MultipleChoice', {}, 'multiple_choice', 'multiple_choice', ('text', 'label')),
  'number': (
    'SequenceClassification', {'problem_type': 'regression', 'id2label': {'0': 'LABEL_0'}},
    'regression', 'text_regression', ('text', 'label'),
  ),
  'labels': (
    'SequenceClassification', {'problem_type': 'multi_label_classification', **NAMED},
    'multi_label', 'multi_label', ('text', 'labels'),
  ),
}  # fmt: skip
ROBERTA = BERT | {'model_type': 'roberta', 'pad_token_id': 1}


def config_json(name):
  head, fields, *_ = HEADS[name]
  # A question alone may have 64 tokens.
  return {**BERT, 'max_position_embeddings': 96, 'architectures': [f'BertFor{head}'], **fields}


def bert(folder, name):
  tokenizer = {
    'vocab.txt': ('\n'.join(WORDS) + '\n').encode(),
    'tokenizer_config.json': b'{"do_lower_case": false, "model_max_length": 96}',
  }
  return write(folder, config_json(name), tokenizer)


@pytest.fixture(scope='module', params=HEADS)
def imported(request, tmp_path_factory):
  """(name of the head, the folder, the workdir it was read into)"""
  folder = bert(tmp_path_factory.mktemp('public') / 'bert', request.param)
  workdir = folder.parent / 'run'
  assert run('import', f'--from={folder}', f'--workdir={workdir}') == 0
  return request.param, folder, workdir


def test_what_an_import_is_and_that_it_goes_back(imported, tmp_path):
  name, folder, workdir = imported
  _, fields, objective, task, columns = HEADS[name]
  config = json.loads((workdir / 'config.json').read_text())
  assert (config['objective']['name'], config['task']['name']) == (objective, task)
  assert (config['data']['text_column'], config['data']['label_column']) == columns
  if objective in ('tagging', 'multi_label'):
    assert config['task']['labels'] == list(fields['id2label'].values())
  assert run('export', f'--workdir={workdir}', f'--to={tmp_path / "again"}') == 0
  assert raw(tmp_path / 'again') == raw(folder)
  again = json.loads((tmp_path / 'again' / 'config.json').read_text())
  assert again == json.loads((folder / 'config.json').read_text())


def test_a_run_goes_on_with_the_head(imported, tmp_path, root):
  """With the same labels, nothing starts afresh; and the new run is of the same class."""
  from flaxlm.config import recipe
  from flaxlm.training import loop
  from flaxlm.training.experiment import build

  name, folder, workdir = imported
  rows = {
    'text': 'a b', 'choices': ['a', 'b'], 'question': 'c', 'context': 'a b',
    'answers': {'text': ['b'], 'answer_start': [2]}, 'tokens': ['a', 'b'], 'tags': ['O', 'B-X'],
    'labels': 'O,I-X', 'label': 1,
  }  # fmt: skip
  lines = [json.dumps(rows | {'context': f'a b{" c" * i}'}) for i in range(40)]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(lines))
  recipes = {
    'tags': 'tag', 'span': 'squad', 'choices': 'multiple_choice', 'number': 'regress',
    'labels': 'multi_label',
  }  # fmt: skip
  overrides = [
    ('init_from', str(workdir)), ('data.train', str(tmp_path / 'rows.jsonl')),
    ('restore.skip', ''),
  ]  # fmt: skip
  if 'id2label' in HEADS[name][1] and name != 'number':
    overrides.append(('task.labels', 'O,B-X,I-X'))
  config = recipe.load(str(root / 'configs' / f'{recipes[name]}.py'), overrides)
  loop.start(build(config, tmp_path / 'more'), tmp_path / 'more')
  report = json.loads((tmp_path / 'more' / 'restore_report.json').read_text())
  assert [path for path in report['loaded'] if path.startswith('head/')]
  assert not report['fresh'] + report['dropped'] + report['reshaped'] + report['renamed']


@pytest.mark.parametrize('name, head', [('tag', 'head/classes/'), ('squad', 'head/')])
def test_a_transform_of_masked_words_is_gone_on_with(name, head, root):
  """What begins the head of a ModernBERT begins the head of a task."""
  from flaxlm.config import recipe
  from flaxlm.training import matching

  rules = recipe.Recipe(str(root / 'configs' / f'{name}.py')).config('encoder').restore
  stored = dict.fromkeys(('head/mlm/dense/kernel', 'head/mlm/norm/scale'), np.zeros(3))
  wanted = {path.replace('head/mlm/', head): leaf for path, leaf in stored.items()}
  parts = matching.parts(stored), matching.parts(wanted)
  plan = matching.match(*parts, rules, set())
  assert {new: part.path for new, part in plan.items()} == {
    path.replace('head/mlm/', head): path for path in stored
  }


@pytest.mark.parametrize('imported', ['tags', 'choices'], indirect=True)
def test_an_import_predicts(imported, tmp_path):
  name, _, workdir = imported
  rows = {
    'tags': {'tokens': ['a', 'b', 'c']},
    # More than two, and more than a row holds.
    'choices': {'text': 'a', 'choices': ['b ' * 60, 'c', 'a b ' * 50, 'c .']},
  }
  (tmp_path / 'rows.jsonl').write_text(json.dumps(rows[name]) + '\n')
  flags = f'--input={tmp_path / "rows.jsonl"}', f'--output={tmp_path / "found.jsonl"}'
  assert run('predict', f'--workdir={workdir}', *flags) == 0
  found = json.loads((tmp_path / 'found.jsonl').read_text())
  assert len(found['prediction'] if name == 'tags' else found['probabilities']) == len(
    next(value for value in rows[name].values() if type(value) is list)
  )


@pytest.mark.parametrize('imported', ['number'], indirect=True)
def test_an_import_reads_pairs_where_it_is_told(imported, tmp_path, capsys):
  _, _, workdir = imported
  rows = [{'text': 'a b', 'other': other} for other in ('a', 'c c', 'b')]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
  flags = f'--workdir={workdir}', f'--input={tmp_path / "rows.jsonl"}'

  def numbers(*more):
    assert run('predict', *flags, *more) == 0
    return [json.loads(line)['prediction'] for line in capsys.readouterr().out.splitlines()]

  assert len(set(numbers())) == 1
  assert len(set(numbers('--config.task.pair_column=other'))) == 3
  assert run('predict', *flags, '--config.evaluation.seed=1') == 1
  assert 'predict takes the config of the run, and only data.text_col' in capsys.readouterr().err


@pytest.mark.parametrize('imported', ['span'], indirect=True)
def test_an_import_is_judged_by_the_rules_of_what_it_reads(imported, tmp_path):
  _, _, workdir = imported
  answer, nothing = {'text': ['c'], 'answer_start': [2]}, {'text': [], 'answer_start': []}
  rows = [
    {'id': str(i), 'question': 'b', 'context': 'b c b', 'answers': answer if i else nothing}
    for i in range(3)
  ]
  (tmp_path / 'all.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
  (tmp_path / 'one.jsonl').write_text('\n'.join(map(json.dumps, rows[1:])) + '\n')

  def found(name, **fields):
    overrides = [('data.validation', str(tmp_path / f'{name}.jsonl'))]
    overrides += [(f'task.{field}', value) for field, value in fields.items()]
    return evaluator.evaluate_workdir(str(workdir), 'latest', overrides)['validation']

  assert 'best_f1_threshold' not in found('one') and 'best_f1_threshold' in found('all')
  assert 'best_f1_threshold' not in found('all', unanswerable='False')
  # Nothing is answered, which is right once in three times.
  assert found('all', null_threshold='-1e9')['exact_match'] == pytest.approx(100 / 3)
  assert found('all', null_threshold='1e9')['no_answer_exact_match'] == 0


REFERENCES = {
  'span': {'start_logits': (2, 4), 'end_logits': (2, 4)},
  'choices': {'logits': (1, 2)},
  'tags': {'logits': (2, 4, 3)},
}


@pytest.mark.parametrize('imported', REFERENCES, indirect=True)
def test_outputs_of_the_original_are_compared(imported, tmp_path, capsys):
  """In the shapes in which the original takes and gives them; padding does not count."""
  from flaxlm.training.experiment import open_model

  name, _, workdir = imported
  folder = bert(tmp_path / 'bert', name)
  described, _ = convert.open_folder(folder)
  experiment, params, _ = open_model(workdir, 'latest')
  ids, mask = np.array([[2, 5, 6, 3], [2, 7, 3, 0]]), np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
  arrays = {'input_ids': ids, 'attention_mask': mask}
  batch = _reference.batch_of(described, arrays)
  found = _reference.outputs(described, experiment.model, params, batch)
  if name == 'choices':
    arrays = {key: array[None] for key, array in arrays.items()}
    theirs = {'logits': found.T}
  elif name == 'span':
    theirs = {'start_logits': found[..., 0], 'end_logits': found[..., 1]}
  else:
    theirs = {'logits': found}
  theirs = {key: np.ascontiguousarray(array) for key, array in theirs.items()}
  assert {key: array.shape for key, array in theirs.items()} == REFERENCES[name]
  for change, status in ((0.0, 0), (0.5, 1)):
    last = list(theirs)[-1]
    changed = theirs | {last: theirs[last] + np.float32(change)}
    safetensors.numpy.save_file(arrays | changed, folder / _reference.FILE)
    target = tmp_path / f'run{status}'
    assert run('import', f'--from={folder}', f'--workdir={target}') == status
    said = capsys.readouterr().err
    assert ('agree with' in said) == (not status) and ('differs from' in said) == bool(status)


# ------------------------------------------------------------------- what is taken, what is refused


def config_of(**fields):
  """The config of the run that an import makes of a config.json."""
  module = importlib.import_module('flaxlm.commands.import')
  return module._config(convert.describe({'vocab_size': 300, **fields}, []), 'tokenizer')


@pytest.mark.parametrize(
  'fields, options',
  [
    (
      ROBERTA | {'architectures': ['RobertaForQuestionAnswering']},
      {'pair_separators': 2, 'pooler': 'none'},
    ),
    (
      ROBERTA | {'architectures': ['RobertaForMultipleChoice']},
      {'pair_separators': 2, 'pooler': 'tanh', 'pooling': 'first'},
    ),
    (
      BERT | {'model_type': 'modernbert', 'architectures': ['ModernBertForTokenClassification']},
      {'pooler': 'transform'},
    ),
    (
      {
        'model_type': 'gpt2', 'architectures': ['GPT2ForTokenClassification'], 'n_embd': 16,
        'n_layer': 1, 'n_head': 2,
      },
      {'decoder_marks': 'none'},
    ),
  ],
  ids=['roberta-span', 'roberta-choices', 'modernbert', 'gpt2'],
)  # fmt: skip
def test_a_head_reads_what_it_was_trained_on(fields, options):
  objective = config_of(**fields).objective
  assert {key: getattr(objective, key) for key in options} == options


@pytest.mark.parametrize('name', ['RobertaForQuestionAnswering', 'RobertaForMaskedLM'])
def test_marks_are_taken_from_an_import(tmp_path, name):
  """`adopt` gives a recipe the separators that the weights, or fine-tuning of such, have."""
  from flaxlm.config import recipe, tree

  config = config_of(**ROBERTA | {'architectures': [name]})
  (tmp_path / 'config.json').write_text(json.dumps(tree.to_dict(config)))
  own = tree.new(model='encoder', objective='span_qa', task='question_answering')
  assert own.objective.pair_separators == 1
  recipe.adopt(own, str(tmp_path), with_model=True)
  assert own.objective.pair_separators == 2


@pytest.mark.parametrize(
  'options, message',
  [
    (
      {'pooler': 'transform'},
      "BertForTokenC.*: config.objective.pooler is 'transform', and the class has",
    ),
    ({'pooler': 'none'}, ''),
  ],
)
def test_what_an_export_would_compute_otherwise_is_named(options, message):
  model = config_of(**BERT).model
  if not message:
    found = convert.for_export(model, 'tagging', options, ('a', 'b'))
    assert found.architecture == 'BertForTokenClassification'
    return
  with pytest.raises(UserError, match=message):
    convert.for_export(model, 'tagging', options, ('a', 'b'))


@pytest.mark.parametrize(
  'objective, labels, fields',
  [
    ('regression', (), {'problem_type': 'regression', 'id2label': {'0': 'LABEL_0'}}),
    (
      'multi_label', ('x', 'y', 'z'),
      {'problem_type': 'multi_label_classification', 'id2label': {'0': 'x', '1': 'y', '2': 'z'}},
    ),
    ('tagging', ('O', 'B'), {'id2label': {'0': 'O', '1': 'B'}, 'problem_type': None}),
    ('span_qa', (), {'id2label': None, 'problem_type': None}),
  ],
)  # fmt: skip
def test_what_config_json_says_of_a_head(objective, labels, fields):
  options = {'pooling': 'first', 'pooler': 'tanh'}
  if objective in ('tagging', 'span_qa'):
    options = {'pooler': 'none'}
  found = convert.for_export(config_of(**BERT).model, objective, options, labels)
  assert {key: found.config_json.get(key) for key in fields} == fields
