"""SQuAD's files and rows, answers put together from windows, and the official layouts."""

import dataclasses
import json

import numpy as np
import pytest

from flaxlm.config.data import DataConfig
from flaxlm.config.schema import Config as ExperimentConfig
from flaxlm.data import source
from flaxlm.data.bad_rows import BadRows
from flaxlm.errors import UserError
from flaxlm.metrics import squad
from flaxlm.tasks.question_answering import NO_ANSWER_SCORE, Config, Task
from flaxlm.training import inputs

CONTEXT = 'Denver won in Santa Clara.'


def make(unanswerable=False, threshold=0.0):
  task = Config('question_answering', unanswerable, threshold)
  return Task(dataclasses.replace(ExperimentConfig(), task=task))


def article(*questions, context=CONTEXT):
  return {
    'version': 'x',
    'data': [{'title': 't', 'paragraphs': [{'context': context, 'qas': list(questions)}]}],
  }


def read(path, task=None):
  task = task or make()
  return [
    task.parse(row, where)
    for where, row in source.rows(str(path), DataConfig(), readers=task.readers)
  ]


def test_both_versions_of_the_file(tmp_path):
  one = {'id': 'a', 'question': 'Who?', 'answers': [{'text': 'Denver', 'answer_start': 0}]}
  two = {'id': 'b', 'question': 'Why?', 'answers': [], 'is_impossible': True,
         'plausible_answers': [{'text': 'won', 'answer_start': 7}]}  # fmt: skip
  (tmp_path / 'dev.json').write_text(json.dumps(article(one, two)))
  first, second = read(tmp_path / 'dev.json')
  assert first == {
    'id': 'a', 'question': 'Who?', 'text': CONTEXT, 'answers': [{'text': 'Denver', 'start': 0}],
  }  # fmt: skip
  assert second['answers'] == []
  unset = make(unanswerable=None)
  assert unset.discover([first]) == {'unanswerable': False}
  assert unset.discover([first, second]) == {'unanswerable': True}
  assert make(unanswerable=False).discover([second]) == {'unanswerable': False}


@pytest.mark.parametrize(
  'answers',
  [
    '{"text": ["Denver"], "answer_start": [0]}',
    '[{"text": "Denver", "answer_start": 0}]',
  ],
)
def test_rows_of_tables(answers):
  row = {'context': CONTEXT, 'question': 'Who?', 'answers': answers}
  example = make().parse(row, 'f.jsonl:3')
  assert example['id'] == 'f.jsonl:3' and example['answers'] == [{'text': 'Denver', 'start': 0}]
  del row['answers']
  assert 'answers' not in make().parse(row, 'f:1', labelled=False)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'answers': '{"text": ["Denver"], "answer_start": [1]}'}, "'Denver' does not stand at 1"),
    ({'answers': '{"text": ["x"], "answer_start": [999]}'}, "'x' does not stand at 999"),
    ({'answers': '{"text": ["x"], "answer_start": [-1]}'}, "'x' does not stand at -1"),
    ({'answers': '{"text": [" "], "answer_start": [6]}'}, 'an answer is empty'),
    ({'answers': 'Denver'}, 'answers must be'),
    ({'answers': '[' * 100_000}, 'answers must be'),
    ({'answers': '[{"text": "Denver", "answer_start": 1e999}]'}, 'answers must be'),
    ({'answers': '[{"text": "Denver", "answer_start": false}]'}, 'answers must be'),
    ({'answers': '[{"text": "Denver", "answer_start": 0.3}]'}, 'answers must be'),
    ({'answers': ''}, "column 'answers' is empty; of a question without an answer it is"),
    ({'answers': None}, "no column 'answers'"),
    ({'answers': '[{"text": null, "answer_start": 0}]'}, 'answers must be'),
    ({'question': ' '}, "the text in column 'question' is empty"),
    ({'context': None}, r"no column 'context' \(valid: question, answers\)$"),
  ],
)
def test_a_malformed_question_is_named(change, message):
  row = {'context': CONTEXT, 'question': 'Who?', 'answers': '[]'} | change
  row = {key: value for key, value in row.items() if value is not None}
  with pytest.raises(UserError, match=f'^f:1: .*{message}'):
    make().parse(row, 'f:1')


def test_a_malformed_file_is_named(tmp_path):
  (tmp_path / 'a.json').write_text('{"data": [\n')
  with pytest.raises(UserError, match=r'a\.json:2: malformed json'):
    read(tmp_path / 'a.json')
  for deep in ('[' * 100_000, '9' * 5000):
    (tmp_path / 'a.json').write_text(f'{{"data": {deep}')
    with pytest.raises(UserError, match=r'a\.json(:1)?: malformed json'):
      read(tmp_path / 'a.json')
  (tmp_path / 'a.json').write_text('[]')
  with pytest.raises(UserError, match=r'a\.json: not in the layout of SQuAD'):
    read(tmp_path / 'a.json')
  (tmp_path / 'a.json').write_text(json.dumps(article({'id': 'q7', 'answers': []})))
  with pytest.raises(UserError, match=r"a\.json: question q7: has no 'question'"):
    read(tmp_path / 'a.json')


QUESTION = {'id': 'q7', 'question': 'Who?', 'answers': []}


@pytest.mark.parametrize(
  'file, message',
  [
    ({'data': 5}, 'data must be a list, got 5'),
    ({'data': ['x']}, r'data\[0\] must be an object, got "x"'),
    ({'data': [{'title': 't'}]}, r"data\[0\]: has no 'paragraphs'"),
    ({'data': [{'paragraphs': None}]}, r'data\[0\].paragraphs must be a list, got null'),
    ({'data': [{'paragraphs': [{'qas': 5}]}]}, r'data\[0\].paragraphs\[0\].qas must be a list'),
    (article('q'), r'data\[0\].paragraphs\[0\].qas\[0\] must be an object, got "q"'),
    (article(QUESTION | {'answers': ['x']}), r'question q7: answers\[0\] must be an object'),
    (article(QUESTION | {'answers': 'x'}), 'question q7: answers must be a list'),
    (article(QUESTION | {'question': None}), "question q7: 'question' must be a text, got null"),
    (article(QUESTION, context=None), "question q7: 'context' must be a text, got null"),
    (article(QUESTION | {'id': None}), "question 1: 'id' must be a text"),
    (article(QUESTION | {'id': ''}), "question 1: 'id' is empty"),
    (article(QUESTION | {'question': '\ud800'}), 'question q7: half a surrogate pair'),
  ],
)
def test_a_file_of_another_shape_is_named_with_the_place(tmp_path, file, message):
  (tmp_path / 'a.json').write_text(json.dumps(file))
  with pytest.raises(UserError, match=rf'^{tmp_path}/a\.json: {message}'):
    read(tmp_path / 'a.json')


def splits(path, **data):
  """Ids of the questions of each set, as a run reads them; of what evaluation reads alone."""
  base = ExperimentConfig()
  data = dataclasses.replace(base.data, train=str(path), **data)
  config = dataclasses.replace(base, data=data, task=Config('question_answering'))
  bad = BadRows(config.data.on_bad_row)
  found = inputs.rows_of(make(), config, not config.data.validation, bad)
  return {name: [row['id'] for _, row in rows] for name, rows in found.items()}


def test_questions_on_one_context_are_held_out_together(tmp_path):
  contexts = [
    {'context': f'{CONTEXT} {i}', 'qas': [QUESTION | {'id': f'{i}-{q}'} for q in range(10)]}
    for i in range(20)
  ]
  (tmp_path / 'train.json').write_text(json.dumps({'data': [{'paragraphs': contexts}]}))
  found = splits(tmp_path / 'train.json', holdout=0.2)
  assert [len(found[name]) for name in ('train', 'validation')] == [160, 40]
  train, held_out = ({id.split('-')[0] for id in found[n]} for n in ('train', 'validation'))
  assert not train & held_out


def test_an_evaluation_set_has_no_id_twice(tmp_path):
  (tmp_path / 'dev.json').write_text(
    json.dumps(article(QUESTION, QUESTION | {'id': 'a'}, QUESTION))
  )
  place = str(tmp_path / 'dev.json')
  with pytest.raises(UserError, match="dev.json: question q7: the id 'q7' is there twice"):
    splits(place, validation=place)
  assert splits(place, validation=place, on_bad_row='skip') == {'validation': ['q7', 'a']}
  # Rows of tables need no ids.
  row = json.dumps({'context': CONTEXT, 'question': 'Who?', 'answers': [], 'id': None})
  (tmp_path / 'dev.jsonl').write_text(f'{row}\n{row}\n')
  assert splits(place, validation=place + 'l') == {'validation': ['', '']}


EXAMPLES = [
  {'id': 'a', 'question': 'Who?', 'text': CONTEXT, 'answers': [{'text': 'Denver', 'start': 0}]},
  {'id': 'b', 'question': 'Why?', 'text': CONTEXT, 'answers': []},
]
# Two windows of the first question, of which the second has the better answer; one of the second.
PREDICTIONS = {
  'example_ids': np.array([0, 0, 1]),
  'scores': np.array([[1.0, 0.5, -1e30], [3.0, 0.5, 0.2], [2.0, -1e30, -1e30]]),
  'starts': np.array([[7, 0, 0], [0, 0, 14], [14, 0, 0]]),
  'ends': np.array([[10, 6, 0], [6, 6, 25], [25, 0, 0]]),
  'null_scores': np.array([9.0, 0.0, 2.5]),
}


def test_answers_of_windows_are_merged():
  records = list(make().records(PREDICTIONS, EXAMPLES))
  assert [record['prediction'] for record in records] == ['Denver', 'Santa Clara']
  best = records[0]['n_best']
  assert [answer['text'] for answer in best] == ['Denver', 'won', 'Santa Clara']  # Each text once.
  weights = np.exp([3.0, 1.0, 0.2])
  assert best[0]['probability'] == pytest.approx(weights[0] / weights.sum(), abs=1e-6)
  assert NO_ANSWER_SCORE > -1e30


def test_what_a_question_may_lack_is_settled_for_all_of_a_file():
  task, (first, second) = make(unanswerable=None), EXAMPLES
  alone = {key: value[:2] for key, value in PREDICTIONS.items()} | {'null_scores': np.full(2, 9.0)}
  assert [record['prediction'] for record in task.records(alone, [first])] == ['Denver']
  task.settle(iter([first, second]))
  assert [record['prediction'] for record in task.records(alone, [first])] == ['']
  task = make(unanswerable=False)
  task.settle([second])
  assert [record['prediction'] for record in task.records(alone, [first])] == ['Denver']


def test_no_answer_where_its_lowest_score_beats_the_best_answer():
  task = make(unanswerable=True)
  predictions = json.loads(task.files(PREDICTIONS, EXAMPLES)['predictions.json'])
  assert predictions == {'a': 'Denver', 'b': ''}
  odds = json.loads(task.files(PREDICTIONS, EXAMPLES)['null_odds.json'])
  assert odds == {'a': -3.0, 'b': 0.5}
  metrics = task.metrics(PREDICTIONS, EXAMPLES)
  assert metrics['exact_match'] == metrics['f1'] == metrics['best_f1'] == 100.0
  assert -3.0 <= metrics['best_f1_threshold'] < 0.5
  strict = make(unanswerable=True, threshold=0.6)
  assert json.loads(strict.files(PREDICTIONS, EXAMPLES)['predictions.json'])['b'] == 'Santa Clara'
  assert strict.metrics(PREDICTIONS, EXAMPLES)['exact_match'] == 50.0


def test_a_true_answer_without_words_counts_nowhere_in_2_0():
  context = 'the end'
  answers = [{'text': 'the', 'start': 0}, {'text': 'end', 'start': 4}]
  examples = [{'id': 'a', 'question': 'What?', 'text': context, 'answers': answers}]
  predictions = {  # 'the', which is no text, normalised.
    'example_ids': np.array([0]),
    'scores': np.array([[1.0]]),
    'starts': np.array([[0]]),
    'ends': np.array([[3]]),
    'null_scores': np.array([0.0]),
  }
  metrics = make(unanswerable=True).metrics(predictions, examples)
  assert metrics['exact_match'] == metrics['f1'] == 0.0
  assert metrics['best_exact_match'] == metrics['best_f1'] == 0.0


def test_without_any_candidate_the_answer_is_empty():
  nothing = PREDICTIONS | {'scores': np.full((3, 3), -1e30)}
  records = list(make().records(nothing, EXAMPLES))
  assert [record['prediction'] for record in records] == ['', '']


@pytest.mark.full
@pytest.mark.parametrize(
  'name, number', [('dev-v1.1.reconstructed.json.xz', 10570), ('train-v1.1.subset.json.xz', 8152)]
)
def test_the_real_files(data_folder, name, number):
  examples = read(data_folder / 'squad' / name)
  assert len(examples) == number
  first = {example['id']: example['answers'][0]['text'] for example in examples}
  true = {e['id']: [answer['text'] for answer in e['answers']] for e in examples}
  found = squad.scores(first, true, version_2=False)
  assert found['exact_match'] == 100.0 and found['f1'] > 99.9
