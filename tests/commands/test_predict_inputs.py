"""Which files `predict` reads for which task, and what output that was begun is gone on with."""

import argparse
import gzip
import io
import json
import sys
import types

import pytest
import stubs

from flaxlm import files
from flaxlm.commands import _resumable, predict
from flaxlm.config import tree
from flaxlm.data.bad_rows import BadRows
from flaxlm.errors import UserError
from flaxlm.tasks.text_classification import NO_LABEL
from flaxlm.training.inputs import task_of


def experiment(task, objective='classification', text_column='text', **fields):
  """What `predict` reads rows with; no model."""
  config = tree.new(model='encoder', objective=objective, task=task)
  config.total_steps, config.data.train, config.data.text_column = 1, 'x.tsv', text_column
  for name, value in fields.items():
    config.task[name] = value
  config = tree.from_config_dict(config)
  return types.SimpleNamespace(config=config, task=task_of(config), objective=stubs.Objective())


def read(made, path, policy='error'):
  """Examples of a file."""
  return [e for _, e in predict._numbered(made, str(path), BadRows(policy))]


@pytest.fixture
def write(tmp_path):
  def write(name, text):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == '.gz' else text.encode())
    return path

  return write


def test_a_text_file_is_of_the_task_s_format(write):
  tagging = experiment('tagging', 'tagging', 'tokens', labels=('B', 'O'))
  (found,) = read(tagging, write('x.txt', 'A\tO\nman\tO\n'))
  assert found['words'] == ['A', 'man']
  mrpc = experiment('glue', subset='mrpc')
  header = 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n'
  (found,) = read(mrpc, write('msr_paraphrase_test.txt', header + '1\t7\t8\tIt is.\tSo it is.\n'))
  assert (found['text'], found['text_pair']) == ('It is.', 'So it is.')


def test_plain_text_fills_the_column_of_the_task(write):
  sst2 = experiment('glue', subset='sst2')
  plain = write('x.txt', 'A film.\nAnother, with\ta tab.\n')
  assert [e['text'] for e in read(sst2, plain)] == ['A film.', 'Another, with\ta tab.']
  # GLUE's own file of the same ending stays one.
  for text in ('sentence\tlabel\nA film.\t1\n', 'sentence\nA film.\n'):
    assert [e['text'] for e in read(sst2, write('y.txt', text))] == ['A film.']


@pytest.mark.parametrize('name', ['x.json', 'x.json.gz'])
def test_a_json_file_is_no_text(write, name):
  with pytest.raises(UserError, match=r'x\.json(\.gz)?: json rows come as \.jsonl'):
    read(experiment('translation', 'seq2seq'), write(name, '[{"text": "One."}]\n'))


@pytest.mark.parametrize('name', ['m.val.en', 'x.en.gz', 'news', 'x.txt'])
def test_any_file_that_is_no_table_has_a_row_a_line(write, name):
  found = read(experiment('translation', 'seq2seq'), write(name, 'One.\nTwo.\n\n \n'))
  assert [e['text'] for e in found] == ['One.', 'Two.']


def test_a_blank_line_shifts_no_row(write):
  translation = experiment('translation', 'seq2seq')
  with pytest.raises(UserError, match=r"x\.txt:2: the source in column 'text' is empty"):
    read(translation, write('x.txt', 'One.\n\nThree.\n'))
  place = str(write('x.txt', 'One.\n\nThree.\n'))
  found = predict._numbered(translation, place, BadRows('skip'))
  assert [number for number, _ in found] == [0, 2]


@pytest.mark.parametrize(
  'made',
  [
    ('text_classification', 'classification', {'pair_column': 'other'}),
    ('multiple_choice', 'multiple_choice', {}),
    ('question_answering', 'span_qa', {}),
  ],
)
def test_rows_of_several_texts_are_no_lines(write, made):
  task, objective, fields = made
  with pytest.raises(UserError, match=r'x\.txt: rows come from \.jsonl'):
    read(experiment(task, objective, **fields), write('x.txt', 'A text.\n'))


CHOICES = {'text': 't', 'choices': '["a", "b"]'}
QUESTION = {'question': 'q', 'context': 'c'}


@pytest.mark.parametrize(
  'made, row, labels',
  [
    (('text_classification',), {'text': 't'}, ['', ' ', 'other']),
    (('glue',), {'sentence': 't'}, ['', '7', '-1', 'other']),
    (('text_regression', 'regression'), {'text': 't'}, ['', 'much', 'nan']),
    (('multi_label', 'multi_label'), {'text': 't'}, ['a,other', '["a"', 'a,,b']),
    (('tagging', 'tagging'), {'text': '["a", "b"]'}, ['', '["a"]', '["a", "other"]', 'a b']),
    (('multiple_choice', 'multiple_choice'), CHOICES, ['', 'other', '2']),
    (('question_answering', 'span_qa'), QUESTION, ['?', '[{"text": "d", "answer_start": 0}]']),
    (('text_to_text', 'seq2seq'), {'text': 't'}, ['', ' ']),
    (('summarization', 'seq2seq'), {'text': 't'}, ['', '[{}]', '[""]']),
  ],
  ids=lambda value: value[0] if isinstance(value, tuple) else '',
)
def test_what_is_no_label_is_none_of_a_row_to_predict(made, row, labels):
  has_labels = made[0] in ('text_classification', 'multi_label', 'tagging')
  task = experiment(*made, **({'labels': ('a', 'b')} if has_labels else {})).task
  expected = task.parse(row, 'f:1', labelled=False)
  key = {'span_qa': 'answers', 'seq2seq': 'target'}.get(made[-1], 'label')
  for label in labels:
    assert task.parse(row | {key: label}, 'f:1', labelled=False) == expected
    with pytest.raises(UserError, match='^f:1: '):
      task.parse(row | {key: label}, 'f:1')


@pytest.mark.parametrize(
  'content, expected',
  [
    (b'\xef\xbb\xbf{"text": "a"}\n', ['a']),
    (b'\xef\xbb\xbfa\nb\n', ['a', 'b']),
  ],
)
def test_a_byte_order_mark_is_no_text(monkeypatch, content, expected):
  monkeypatch.setattr(sys, 'stdin', types.SimpleNamespace(buffer=io.BytesIO(content)))
  with predict._local('-') as place:
    assert [e['text'] for e in read(experiment('text_classification'), place)] == expected


def test_a_question_of_standard_input_has_the_same_id_each_time(monkeypatch, capsys):
  line = b'{"question": "q?", "context": "c"}\n'
  monkeypatch.setattr(sys, 'stdin', types.SimpleNamespace(buffer=io.BytesIO(line)))
  args = argparse.Namespace(input='-', output='', on_bad_row='error', batch_size=1)
  predictor = lambda numbers, examples: ({'id': example['id']} for example in examples)
  with predict._local('-') as place:
    predict._run(args, experiment('question_answering', 'span_qa'), place, [], 1, predictor)
  assert json.loads(capsys.readouterr().out) == {'id': 'stdin.jsonl:1'}


def identity(made, place):
  return predict._identity(argparse.Namespace(input=place, output='o'), made, place, 7)


def test_other_content_is_another_input(write):
  """Of both line-parallel files, and of a file with a plus in its name."""
  made = experiment('translation', 'seq2seq')
  first, second = write('a.en', 'One.\n'), write('a.de', 'Eins.\n')
  for place, changed in ((f'{first}+{second}', second), (str(write('c++.jsonl', '{}')), None)):
    changed = changed or write('c++.jsonl', '{}')
    before = identity(made, place)
    assert identity(made, place) == before
    changed.write_text('Otherwise.\n')
    assert identity(made, place) != before


def test_another_tfds_set_is_another_input(monkeypatch):
  made = experiment('text_classification')
  content = ['imdb/1.0.0', 'test', [['a', 1, 'x']]]
  monkeypatch.setattr('flaxlm.data.tfds.identity', lambda *_: content)
  before = identity(made, 'tfds:imdb')
  content = ['imdb/1.0.0', 'test', [['a', 1, 'y']]]
  assert identity(made, 'tfds:imdb') != before


def run(place, output, size, policy='skip', stop=None):
  """`predict` with a model that says the number it draws with; interrupted at the row `stop`."""
  made = experiment('text_classification')

  def predictor(numbers, examples):
    if stop in numbers:
      raise KeyboardInterrupt
    return ({'text': e['text'], 'draw': n} for n, e in zip(numbers, examples, strict=True))

  args = argparse.Namespace(input=place, output=str(output), on_bad_row=policy, batch_size=size)
  predict._run(args, made, place, 7, size, predictor)
  return [json.loads(line) for line in output.read_text().splitlines()]


def test_a_written_label_is_said_by_its_name():
  task = experiment('text_classification', labels=('Bad', 'Good')).task
  task.read_back(str.lower)  # As a tokenizer that knows no capitals.
  examples = [{'text': 'x', 'label': 'Bad', 'target': 'Bad', 'source': 'x'}, {'text': 'y'}]
  assert predict._records(task, examples, ['bad', 'so so']) == [
    {'text': 'x', 'label': 'Bad', 'prediction': 'Bad', 'output': 'bad'},
    {'text': 'y', 'prediction': NO_LABEL, 'output': 'so so'},
  ]


def test_a_file_without_a_row_that_can_be_used_is_an_error(write, tmp_path):
  place = str(write('x.jsonl', '{"other": "a"}\n'))
  with pytest.raises(UserError, match='x.jsonl has no rows that can be used'):
    run(place, tmp_path / 'out.jsonl', 2)


ROWS = '{"text": "a"}\n{"text": ""}\n{"text": \n{"text": "d"}\n{"text": "e"}\n{"text": " "}\n'


@pytest.mark.parametrize('size', [1, 2, 16])
def test_skipped_rows_keep_their_numbers(write, tmp_path, size):
  found = run(str(write('x.jsonl', ROWS)), tmp_path / 'out.jsonl', size)
  assert [(r['row'], r['text'], r['draw']) for r in found] == [
    (0, 'a', 0), (3, 'd', 3), (4, 'e', 4),
  ]  # fmt: skip


def test_a_resumed_run_says_how_many_rows_were_skipped_in_all(write, tmp_path, capsys):
  place, output = str(write('x.jsonl', ROWS)), tmp_path / 'out.jsonl'
  with pytest.raises(KeyboardInterrupt):
    run(place, output, 1, stop=4)
  assert 'skipped' not in capsys.readouterr().err
  assert [r['row'] for r in run(place, output, 16)] == [0, 3, 4]
  err = capsys.readouterr().err
  assert 'going on behind row 2 of 3' in err
  assert 'input: 3 rows were skipped; the first: ' in err and 'x.jsonl:2: the text' in err


def test_lines_have_a_number_only_where_rows_may_be_left_out(write, tmp_path):
  place = str(write('x.jsonl', '{"text": "a"}\n'))
  assert run(place, tmp_path / 'out.jsonl', 2, 'error') == [{'text': 'a', 'draw': 0}]


@pytest.mark.parametrize(
  'state',
  [
    '[]', 'null', '{', '\udcff', '{"identity": 1}', '{"identity": 1, "done": 1, "bytes": 1000}',
    '{"identity": 1, "done": 1, "bytes": -1}', '{"identity": 1, "done": "1", "bytes": 9}',
  ],
)  # fmt: skip
def test_damaged_progress_begins_anew(tmp_path, state):
  place = tmp_path / 'out.jsonl'
  (tmp_path / 'out.jsonl.partial').write_text('{"n": 0}\n')
  (tmp_path / 'out.jsonl.partial.json').write_text(state, errors='surrogateescape')
  with _resumable.lines(str(place), 1) as output:
    assert output.done == 0
    output.write([{'n': 1}], 1)
  assert place.read_bytes() == b'{"n": 1}\n'


def test_two_commands_do_not_write_one_output(tmp_path):
  place = str(tmp_path / 'out.jsonl')
  with _resumable.lines(place, 1) as output:
    output.write([{'n': 0}], 1)
    second = _resumable.lines(place, 1)
    with pytest.raises(UserError, match='out.jsonl: another process is at work there'), second:
      raise AssertionError('two write one file')
    output.write([{'n': 1}], 2)
  assert (tmp_path / 'out.jsonl').read_text() == '{"n": 0}\n{"n": 1}\n'
  assert [path.name for path in tmp_path.iterdir()] == ['out.jsonl']


def test_output_that_was_finished_meanwhile_is_kept(tmp_path, monkeypatch):
  target = tmp_path / 'out.jsonl'

  def hold(file, place):
    target.with_name('out.jsonl.partial').replace(target)  # As the process before does at its end.
    target.write_text('whole')

  monkeypatch.setattr(files, 'hold', hold)
  with pytest.raises(UserError, match='was just written'), _resumable.lines(str(target), {}):
    pass
  assert target.read_text() == 'whole'
