"""generate, predict and score on runs that were never trained: what goes in and what comes out."""

import io
import json
import sys
import types

import numpy as np
import pytest
import tiny

from flaxlm.commands import _resumable, generate, predict, score
from flaxlm.data.tokenizer import Tokenizer
from flaxlm.decoding.beam import Beam, Hypothesis
from flaxlm.decoding.cache import Reader
from flaxlm.decoding.sampling import Sampling
from flaxlm.decoding.text import Writer
from flaxlm.errors import UserError
from flaxlm.objectives.base import Prompt

RUNS = {
  'gpt': 'gpt2.py:mini',
  'bert': 'bert.py:mini',
  'classify': 'classify.py:encoder',
  'answers': 'text_to_text.py:encoder_decoder',
  'complete': 'text_to_text.py:decoder',
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('writing'))


_built = {}


@pytest.fixture
def runs(folder, monkeypatch):
  """`open_model` of a workdir that is a key of RUNS."""

  def open_model(workdir, which, change=lambda config: config):
    if workdir not in _built:
      made = tiny.experiment(RUNS[workdir], folder)
      _built[workdir] = made, tiny.random_state(made).params
    change(_built[workdir][0].config)
    return *_built[workdir], 7

  monkeypatch.setattr('flaxlm.training.experiment.open_model', open_model)
  return open_model


def lines(capsys):
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_generate(runs, capsys):
  words = ['--workdir=gpt', '--prompt=A b', '--prompt=C', '--max-new-tokens=9', '--json']
  generate.main([*words, '--num-samples=2', '--batch-size=3', '--min-p=0.01', '--seed=3'])
  found = lines(capsys)
  assert [row['prompt'] for row in found] == ['A b', 'A b', 'C', 'C']
  assert found[0]['output'] != found[1]['output']
  generate.main([*words, '--num-samples=2', '--batch-size=4', '--min-p=0.01', '--seed=3'])
  assert lines(capsys) == found
  # A stop string that stands across tokens, or in one, cuts the text before it.
  text = found[0]['output']
  stop = text[3:6]
  generate.main([*words, '--num-samples=2', '--min-p=0.01', '--seed=3', f'--stop={stop}'])
  cut = lines(capsys)[0]
  assert cut['output'] == text[: text.index(stop)] and cut['finish'] == 'stop'
  assert len(cut['tokens']) < 9


@pytest.mark.full
def test_beams(runs, capsys):
  words = ['--workdir=answers', '--prompt=Some text', '--max-new-tokens=6', '--json']
  generate.main([*words, '--num-beams=3', '--num-best=3'])
  found = lines(capsys)
  scores = [row['score'] for row in found]
  assert len(found) == 3 and scores == sorted(scores, reverse=True)
  generate.main([*words, '--num-beams=1'])
  single = lines(capsys)
  generate.main([*words, '--temperature=0'])
  assert single[0]['output'] == lines(capsys)[0]['output']


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--num-beams=2', '--top-k=3'], '--top-k: not read by a beam search'),
    (['--num-best=2'], '--num-best: of a beam search'),
    (['--num-beams=2', '--num-best=3'], '--num-best'),
    (['--min-p=2'], '--min-p'),
    (['--temperature=1e-40'], '--temperature: must be 0, or at least 1e-30'),
    (['--temperature=-1'], '--temperature'),
    (['--stop='], '--stop'),
    (['--num-beams=2', '--num-samples=2'], '--num-best'),
    (['--num-beams=2', '--seed=3'], '--seed: not read by a beam search'),
    (['--temperature=0', '--top-k=3'], '--top-k: not read at temperature 0'),
    (['--temperature=0', '--seed=3'], '--seed: not read at temperature 0'),
    (['--temperature=0', '--num-samples=2'], '--num-samples: at temperature 0 all texts'),
  ],
)
def test_mistakes_of_generate(argv, message):
  with pytest.raises(UserError, match=message):
    generate.main(['--workdir=gpt', *argv])


def test_stop_strings_across_tokens(runs):
  """Whatever the tokens are, the text ends before the first stop string and has it not."""
  made, params = runs('gpt', 'latest')[:2]
  writer = Writer(Reader.of(made.model, params), made.objective, made.tokenizer, 32)
  prompt = writer.prompt('A b', 'x')
  whole = writer.write([prompt], Sampling(12), [(5, 0)])[0][0]
  for start in range(len(whole.text) - 3):
    stop = whole.text[start : start + 3]
    found = writer.write([prompt], Sampling(12), [(5, 0)], ('never', stop))[0][0]
    assert found.text == whole.text[: whole.text.index(stop)] and found.finish == 'stop'
    assert stop in writer.text(prompt, found.tokens)
    assert stop not in writer.text(prompt, found.tokens[:-1])


def test_texts_of_a_beam_search_end_at_stop_strings_too(monkeypatch):
  tokenizer = Tokenizer({'name': 'bytes', 'sentinels': 0})
  found = Hypothesis(tokenizer.encode('xxabcdyy'), -3.0, -1.0, 'eos')
  monkeypatch.setattr('flaxlm.decoding.beam.search', lambda *_: [[found]])
  writer = Writer(None, None, tokenizer, 32)
  prompt = Prompt(tokenizer.encode('abcd '))
  ((output,),) = writer.write([prompt], Beam(), stops=('abcd', 'c'))
  assert (output.text, output.finish, output.score) == ('xxab', 'stop', -1.0)
  assert tokenizer.decode(output.tokens) == 'xxabc'
  ((output,),) = writer.write([prompt], Beam(), stops=('z',))
  assert (output.text, output.finish, len(output.tokens)) == ('xxabcdyy', 'eos', 8)


def write_rows(path, texts):
  path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))


def assert_same(found, expected):
  """Equal but for the rounding of other rows in the batch."""
  assert len(found) == len(expected)
  for a, b in zip(found, expected, strict=True):
    assert a['text'] == b['text'] and a['probabilities'] == pytest.approx(
      b['probabilities'], abs=1e-5
    )


def test_predict_labels(runs, folder, tmp_path, capsys, monkeypatch):
  """From each kind of input the same, in its order; resumed after a stop, the same file."""
  texts = [line.split('\t')[0] for line in (folder / 'rows.tsv').read_text().splitlines()[1:31]]
  rows, plain = tmp_path / 'rows.jsonl', tmp_path / 'rows.txt'
  write_rows(rows, texts)
  plain.write_text('\n'.join(texts) + '\n')
  predict.main(['--workdir=classify', f'--input={rows}'])
  found = lines(capsys)
  assert [row['text'] for row in found] == texts
  assert all(row['prediction'] in ('good', 'bad') for row in found)
  predict.main(['--workdir=classify', f'--input={plain}'])
  assert lines(capsys) == found
  stdin = types.SimpleNamespace(buffer=io.BytesIO(rows.read_bytes()))
  monkeypatch.setattr(sys, 'stdin', stdin)
  predict.main(['--workdir=classify'])
  assert lines(capsys) == found
  # Killed after two chunks, with half a line behind them.
  monkeypatch.setattr(predict, 'CHUNK', 8)
  output = tmp_path / 'out.jsonl'
  argv = ['--workdir=classify', f'--input={rows}', f'--output={output}']
  write, calls = _resumable.Lines.write, []

  def killed(self, records, done):
    if len(calls) == 2:
      self._file.write('{"text": "ha')
      raise KeyboardInterrupt
    calls.append(done)
    write(self, records, done)

  monkeypatch.setattr(_resumable.Lines, 'write', killed)
  with pytest.raises(KeyboardInterrupt):
    predict.main(argv)
  assert not output.exists() and calls == [8, 16]
  resumed = []
  monkeypatch.setattr(
    _resumable.Lines, 'write', lambda *args: (resumed.append(args[2]), write(*args))
  )
  predict.main(argv)
  assert resumed == [24, 30]
  assert_same([json.loads(line) for line in output.read_text().splitlines()], found)
  assert [path.name for path in tmp_path.glob('out*')] == ['out.jsonl']


def test_output_of_another_command_is_not_gone_on_with(tmp_path):
  place = str(tmp_path / 'a.jsonl')
  with pytest.raises(KeyError), _resumable.lines(place, {'a': 1}) as output:
    output.write([{'n': 1}], 1)
    raise KeyError
  with _resumable.lines(place, {'a': 2}) as output:
    assert output.done == 0
    output.write([{'n': 2}], 1)
  assert (tmp_path / 'a.jsonl').read_text() == '{"n": 2}\n'


def test_predict_skips_bad_rows(runs, tmp_path, capsys):
  rows = tmp_path / 'rows.jsonl'
  rows.write_text('{"text": "a b"}\n{"other": 1}\n{"text": \n{"text": "c"}\n')
  argv = ['--workdir=classify', f'--input={rows}']
  with pytest.raises(UserError, match='rows.jsonl:[23]: '):
    predict.main([*argv, '--on-bad-row=error'])
  predict.main([*argv, '--on-bad-row=skip'])
  out, err = capsys.readouterr()
  assert [json.loads(line)['text'] for line in out.splitlines()] == ['a b', 'c']
  assert '2 rows were skipped' in err


@pytest.mark.full
@pytest.mark.parametrize('workdir', ['answers', 'complete'])
def test_predict_writes(runs, tmp_path, capsys, workdir):
  rows = tmp_path / 'rows.txt'
  rows.write_text('Some text.\nOther words.\nAnd a third of them.\n\n')
  argv = [f'--workdir={workdir}', f'--input={rows}', '--max-new-tokens=5']
  predict.main([*argv, '--batch-size=2'])
  found = lines(capsys)
  assert [row['text'] for row in found] == ['Some text.', 'Other words.', 'And a third of them.']
  assert all(isinstance(row['prediction'], str) for row in found)
  predict.main([*argv, '--num-beams=2', '--num-best=2'])
  assert all(len(row['best']) == 2 for row in lines(capsys))


def test_mistakes_of_predict(runs, tmp_path):
  with pytest.raises(UserError, match='trained without a task'):
    predict.main(['--workdir=gpt', '--input=x'])
  rows = tmp_path / 'rows.txt'
  rows.write_text('a\n')
  with pytest.raises(UserError, match='--num-beams: classify was not tuned to write'):
    predict.main(['--workdir=classify', f'--input={rows}', '--num-beams=2'])


def test_score(runs, tmp_path, capsys):
  """Totals are sums of the texts'; a long document in strides has a line of its own."""
  texts = ['Some words here.', 'Two.']
  score.main(['--workdir=gpt', *(f'--text={text}' for text in texts)])
  first, second, both = lines(capsys)
  assert first['bytes'] == len(texts[0]) and both['tokens'] == first['tokens'] + second['tokens']
  total = first['log_likelihood'] + second['log_likelihood']
  np.testing.assert_allclose(both['log_likelihood'], total, rtol=1e-6)
  np.testing.assert_allclose(first['per_byte'] * first['bytes'], first['log_likelihood'], rtol=1e-4)
  np.testing.assert_allclose(np.log(first['perplexity']), -first['per_token'], rtol=1e-4)
  file = tmp_path / 'long.txt'
  file.write_text('\n\n'.join(texts * 20))
  score.main(['--workdir=gpt', f'--input={file}', '--documents=file', '--window=16', '--stride=4'])
  (found,) = lines(capsys)
  assert found['bytes'] == len(file.read_text()) and found['tokens'] > 64
  score.main(['--workdir=bert', f'--text={texts[0]}'])
  assert lines(capsys)[0]['log_likelihood'] < 0


def test_choices(runs, tmp_path, capsys):
  """The scores are those of the choices behind their context; labels are texts or numbers."""
  rows = [
    {'text': 'Some words', 'choices': [' here.', ' there and then.'], 'label': ' here.'},
    {'text': 'Other', 'choices': [' a', ' b', ' c'], 'label': 2},
  ]
  file = tmp_path / 'rows.jsonl'
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  score.main(['--workdir=gpt', f'--input={file}', '--choices-column=choices'])
  *found, last = lines(capsys)
  for row, record in zip(rows, found, strict=True):
    score.main(
      ['--workdir=gpt', f'--context={row["text"]}', *(f'--text={c}' for c in row['choices'])]
    )
    alone = lines(capsys)[: len(row['choices'])]
    for norm, key in (
      ('total', 'log_likelihood'), ('per_token', 'per_token'), ('per_byte', 'per_byte')
    ):  # fmt: skip
      expected = [choice[key] for choice in alone]
      np.testing.assert_allclose(record['log_likelihood'][norm], expected, rtol=1e-4)
      assert record['prediction'][norm] == int(np.argmax(expected))
  assert [record['label'] for record in found] == [0, 2] and last['rows'] == 2
  hits = sum(record['prediction']['total'] == record['label'] for record in found)
  assert last['accuracy']['total'] == hits / 2


def test_a_row_whose_source_is_too_long_is_named(runs, tmp_path):
  file = tmp_path / 'rows.jsonl'
  file.write_text(json.dumps({'text': 'a b ' * 50, 'choices': ['a', 'b']}) + '\n')
  with pytest.raises(UserError, match=r'rows.jsonl:1: a source of \d+ tokens does not fit the 32'):
    score.main(['--workdir=answers', f'--input={file}', '--choices-column=choices'])


def test_what_score_reads_is_named(runs, tmp_path):
  file = tmp_path / 'rows.jsonl'
  argv = ['--workdir=gpt', f'--input={file}']
  file.write_text('')
  with pytest.raises(UserError, match='rows.jsonl has no rows'):
    score.main([*argv, '--choices-column=choices'])
  file.write_text('{"text": "a b", "choices": ["a", "b"]}\n')
  with pytest.raises(UserError, match="rows.jsonl:1: no column 'choice'.*; set --choices-column"):
    score.main([*argv, '--choices-column=choice'])
  with pytest.raises(UserError, match="rows.jsonl:1: no column 'tex'.*; set --text-column"):
    score.main([*argv, '--choices-column=choices', '--text-column=tex'])
  with pytest.raises(UserError, match="rows.jsonl:1: no column 'tex'.*; set --text-column"):
    score.main([*argv, '--text-column=tex'])


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--workdir=gpt'], 'one of --text and --input'),
    (['--workdir=answers', '--text=a'], 'context is missing'),
    (['--workdir=classify', '--text=a'], "'classification', which gives tokens no probability"),
    (['--workdir=gpt', '--text=', '--end'], '--text: a text has no tokens'),
    (['--workdir=bert', '--text=a', '--end'], '--end: the texts of this run have no end'),
    (['--workdir=gpt', '--text=a', '--window=999'], '--window'),
    (['--workdir=gpt', '--text=a', '--window=8', '--stride=9'], '--stride'),
    (['--workdir=bert', '--text=a', '--window=2'], '--window: a masked model reads two marks'),
  ],
)
def test_mistakes_of_score(runs, argv, message):
  with pytest.raises(UserError, match=message):
    score.main(argv)
