"""Rows that cannot be used stop with file and line, or are left out and counted."""

import json

import pytest

from flaxlm.config.data import DataConfig
from flaxlm.data import source
from flaxlm.data.bad_rows import BadRows
from flaxlm.errors import UserError

GOOD = b'first\tgood\n'
CASES = {
  'utf8.tsv': (b'text\tlabel\nfirst\tgood\nb\xff\tbad\nlast\tgood\n', 3, 'not UTF-8'),
  'columns.tsv': (b'text\tlabel\nfirst\tgood\nonly one\nlast\tgood\n', 3, '1 columns'),
  'utf8.csv': (b'text,label\nfirst,good\n"b\xff\nc",bad\nlast,good\n', 3, 'not UTF-8'),
  'json.jsonl': (
    b'{"text": "first", "label": "good"}\n{"text":\n{"text": "last", "label": "good"}\n',
    2,
    'malformed json',
  ),
  'utf8.jsonl': (
    b'{"text": "first", "label": "good"}\n{"text": "\xff"}\n{"text": "last", "label": "good"}\n',
    2,
    'not UTF-8',
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_a_bad_row_stops_or_is_counted(tmp_path, name):
  content, line, message = CASES[name]
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(UserError, match=f'{name}:{line}: .*{message}'):
    list(source.rows(str(path), DataConfig(), bad=BadRows('error').of('train')))
  bad = BadRows('skip')
  rows = [row for _, row in source.rows(str(path), DataConfig(), bad=bad.of('train'))]
  assert [row['text'] for row in rows] == ['first', 'last']
  assert bad.counts == {'train': 1}


def test_the_count_and_the_first_mistake_are_said(capsys):
  bad = BadRows('skip')
  handler = bad.of('dev')
  handler(UserError('a.tsv:3: wrong'))
  handler(UserError('a.tsv:9: wrong too'))
  bad.report()
  text = capsys.readouterr().err
  assert 'dev: 2 rows were skipped; the first: a.tsv:3: wrong' in text


def test_line_parallel_files(tmp_path):
  (tmp_path / 'a.en').write_text('one\ntwo\nthree\n')
  (tmp_path / 'a.de').write_text('eins\nzwei\ndrei\n')
  place = f'{tmp_path}/a.en+{tmp_path}/a.de'
  rows = list(source.rows(place, DataConfig()))
  assert [(row['text'], row['target']) for _, row in rows] == [
    ('one', 'eins'), ('two', 'zwei'), ('three', 'drei'),
  ]  # fmt: skip
  assert rows[1][0].endswith('a.en:2')


def test_globs_are_paired_file_by_file(tmp_path):
  for name, text in {'a.en': 'one', 'b.en': 'two', 'a.de': 'eins', 'b.de': 'zwei'}.items():
    (tmp_path / name).write_text(text + '\n')
  place = f'{tmp_path}/*.en+{tmp_path}/*.de'
  rows = [(row['text'], row['target']) for _, row in source.rows(place, DataConfig())]
  assert rows == [('one', 'eins'), ('two', 'zwei')]
  (tmp_path / 'c.de').write_text('drei\n')
  with pytest.raises(UserError, match='the first names 2 files, the second 3'):
    list(source.rows(place, DataConfig()))


@pytest.mark.parametrize('longer', ['en', 'de'])
def test_lines_that_do_not_pair_up(tmp_path, longer):
  for language in ('en', 'de'):
    (tmp_path / f'a.{language}').write_text('x\ny\n' + ('z\n' if language == longer else ''))
  place = f'{tmp_path}/a.en+{tmp_path}/a.de'
  with pytest.raises(UserError, match=rf'a\.{longer}:3: has no line 3 beside it in .*a\.'):
    list(source.rows(place, DataConfig()))
  bad = BadRows('skip')
  assert len(list(source.rows(place, DataConfig(), bad=bad.of('train')))) == 2
  assert bad.counts == {'train': 1}


def test_a_line_that_is_not_utf8_takes_its_partner_with_it(tmp_path):
  (tmp_path / 'a.en').write_bytes(b'one\ntwo\nthree\n')
  (tmp_path / 'a.de').write_bytes(b'eins\n\xffzwei\ndrei\n')
  place = f'{tmp_path}/a.en+{tmp_path}/a.de'
  with pytest.raises(UserError, match=r'a\.de:2: not UTF-8'):
    list(source.rows(place, DataConfig()))
  bad = BadRows('skip')
  rows = [row for _, row in source.rows(place, DataConfig(), bad=bad.of('train'))]
  assert rows == [{'text': 'one', 'target': 'eins'}, {'text': 'three', 'target': 'drei'}]


def test_a_task_brings_its_own_file_format(tmp_path):
  (tmp_path / 'x.odd').write_text('abc')
  (tmp_path / 'x.jsonl').write_text(json.dumps({'text': 'a'}) + '\n')

  def read(path, config, bad):
    yield f'{path}:1', {'text': path.read_text().upper()}

  readers = {source.ANY_OTHER: read}
  assert [r for _, r in source.rows(f'{tmp_path}/x.odd', DataConfig(), readers=readers)] == [
    {'text': 'ABC'}
  ]
  # A table stays a table.
  assert [r for _, r in source.rows(f'{tmp_path}/x.jsonl', DataConfig(), readers=readers)] == [
    {'text': 'a'}
  ]
  with pytest.raises(UserError, match=r'x\.odd: rows come from'):
    list(source.rows(f'{tmp_path}/x.odd', DataConfig()))
