"""Reading text where it lies: formats, packing, and mistakes that name the file and line."""

import gzip
import lzma

import pytest

from flaxlm.config.data import DataConfig
from flaxlm.data import source, splits
from flaxlm.errors import UserError

TEXTS = ['first "quoted" text', 'second, with a comma', 'dritter Text, größer\u2028als']
PACKERS = {'': lambda data: data, '.gz': gzip.compress, '.xz': lzma.compress}


def write(path, text, packed=''):
  path = path.with_name(path.name + packed)
  path.write_bytes(PACKERS[packed](text if isinstance(text, bytes) else text.encode()))
  return str(path)


def texts(place, **fields):
  return list(source.documents(place, DataConfig(**fields)).texts())


@pytest.mark.parametrize('packed', PACKERS)
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_text_is_cut_at_blank_lines(tmp_path, packed, end):
  text = end.join(['\ufeffa', 'b', '', '  ', 'c d', '', ''])
  assert texts(write(tmp_path / 'x.txt', text, packed)) == ['a\nb', 'c d']


@pytest.mark.parametrize('packed', PACKERS)
def test_a_file_can_be_one_document(tmp_path, packed):
  place = write(tmp_path / 'x.txt', '\ufeffa\r\n\r\nb\n', packed)
  assert texts(place, documents='file') == ['a\n\nb\n']


@pytest.mark.parametrize('packed', PACKERS)
def test_tables_give_one_document_a_row(tmp_path, packed):
  import csv
  import io
  import json

  tsv = 'id\ttext\n' + ''.join(f'{i}\t{text}\n' for i, text in enumerate(TEXTS))
  jsonl = ''.join(json.dumps({'id': 1, 'text': text}) + '\n' for text in TEXTS)
  buffer = io.StringIO()
  csv.writer(buffer).writerows([['id', 'text'], *([i, t] for i, t in enumerate(TEXTS))])
  assert texts(write(tmp_path / 'x.tsv', tsv, packed)) == TEXTS
  assert texts(write(tmp_path / 'x.jsonl', jsonl, packed)) == TEXTS
  assert texts(write(tmp_path / 'x.csv', buffer.getvalue(), packed)) == TEXTS


def test_endings_may_be_in_capitals(tmp_path):
  assert texts(write(tmp_path / 'X.CSV', 'text,label\none,0\n')) == ['one']
  (tmp_path / 'X.TSV.GZ').write_bytes(gzip.compress(b'text\tlabel\none\t0\n'))
  assert texts(str(tmp_path / 'X.TSV.GZ')) == ['one']


def test_parquet(tmp_path):
  import pyarrow
  import pyarrow.parquet

  table = pyarrow.table({'text': TEXTS, 'label': [0, 1, None]})
  pyarrow.parquet.write_table(table, tmp_path / 'x.parquet')
  place = str(tmp_path / 'x.parquet')
  assert texts(place) == TEXTS
  rows = list(source.rows(place, DataConfig()))
  assert rows[1] == (f'{place}:2', {'text': TEXTS[1], 'label': '1'})
  assert rows[2][1]['label'] == ''


def test_csv_fields_may_hold_line_ends(tmp_path):
  place = write(tmp_path / 'x.csv', 'text,label\n"a\nb",1\n"c ""d""",0\n')
  rows = list(source.rows(place, DataConfig()))
  assert rows == [
    (f'{place}:2', {'text': 'a\nb', 'label': '1'}),
    (f'{place}:4', {'text': 'c "d"', 'label': '0'}),
  ]


def test_numbers_name_columns_of_a_file_without_header(tmp_path):
  place = write(tmp_path / 'x.tsv', 'a film\t1\nanother\t0\n')
  config = DataConfig(text_column='0', label_column='1')
  assert [row for _, row in source.rows(place, config)] == [
    {'0': 'a film', '1': '1'},
    {'0': 'another', '1': '0'},
  ]
  assert texts(place, text_column='0') == ['a film', 'another']


def test_empty_rows_are_left_out(tmp_path):
  assert texts(write(tmp_path / 'x.tsv', 'text\tl\na\t1\n  \t2\nb\t3\n')) == ['a', 'b']


def test_globs_are_sorted_and_two_reads_agree(tmp_path):
  for name in 'cab':
    write(tmp_path / f'{name}.txt', f'text {name}')
  found = source.documents(str(tmp_path / '*.txt'), DataConfig())
  assert list(found.texts()) == ['text a', 'text b', 'text c'] == list(found.texts())


def test_a_link_to_nothing_is_named(tmp_path):
  write(tmp_path / 'a.txt', 'one')
  (tmp_path / 'b.txt').symlink_to(tmp_path / 'a.txt')
  (tmp_path / 'c.txt').mkdir()
  assert texts(str(tmp_path / '*.txt')) == ['one', 'one']
  (tmp_path / 'd.txt').symlink_to('nosuch')
  for name in ('d.txt', '*.txt'):
    with pytest.raises(UserError, match='d.txt: a link to nosuch, which does not exist'):
      texts(str(tmp_path / name))


def test_identity_follows_content_and_reading(tmp_path):
  place = write(tmp_path / 'x.txt', 'one\n\ntwo')
  identity = lambda **fields: source.documents(place, DataConfig(**fields)).identity
  before = identity()
  assert before == identity()
  assert before != identity(documents='file')
  write(tmp_path / 'x.txt', 'one\n\ntwi')
  assert before != identity()


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('x.txt', b'fine\nbr\xffken\n', 'x.txt:2: not UTF-8'),
    ('x.jsonl', b'{"text": "a"}\n{"text": \n', 'x.jsonl:2: malformed json'),
    ('x.jsonl', b'{"text": ' + b'[' * 100_000 + b'\n', 'x.jsonl:1: malformed json'),
    ('x.jsonl', b'{"text": ' + b'9' * 5000 + b'}\n', 'x.jsonl:1: malformed json'),
    ('x.jsonl', b'["text"]\n', 'x.jsonl:1: a row must be a json object'),
    ('x.jsonl', b'{"text": "\\ud800"}\n', 'x.jsonl:1: half a surrogate pair'),
    ('x.tsv', b'text\tlabel\na\t1\nb\n', 'x.tsv:3: 1 columns, but the first line has 2'),
    ('x.csv', b'text,label\n"a,1\n', 'x.csv:2: malformed csv'),
    ('x.csv', b'text,text\na,b\n', "x.csv:1: two columns are called 'text'"),
    ('x.tsv', b'txet\tlabel\na\t1\n', "no column 'text' (did you mean 'txet'?)"),
    ('x.txt.gz', b'not packed', 'x.txt.gz:1: cannot be read'),
    ('x.txt.gz', gzip.compress(b'a\n', mtime=0)[:10] + b'\xff', 'x.txt.gz:1: cannot be read'),
    ('x.txt.xz', lzma.compress(b'a\n' * 9999)[:-40], 'cannot be read'),
    ('x.parquet', b'PAR0', 'not a parquet file'),
  ],
)
def test_malformed_files_are_named(tmp_path, name, content, message):
  place = write(tmp_path / name, content)
  with pytest.raises(UserError) as error:
    texts(place)
  assert message in str(error.value)
  if 'cannot be read' in message:
    with pytest.raises(UserError, match=f'{name}: cannot be read'):
      texts(place, documents='file')


def test_a_broken_whole_file_names_the_line(tmp_path):
  place = write(tmp_path / 'x.txt', b'fine\n\nbr\xffken\n')
  with pytest.raises(UserError, match='x.txt:3: not UTF-8'):
    texts(place, documents='file')


def test_places_that_cannot_be_read(tmp_path):
  write(tmp_path / 'train.txt', 'a')
  for place, message in [
    (tmp_path, 'is a directory'),
    (tmp_path / 'trian.txt', "did you mean 'train.txt'"),
    (tmp_path / '*.tsv', 'no file matches'),
    (tmp_path / '**' / '*.txt', r"'\*\*' is not read"),
    (tmp_path / 'no' / 'x.txt', 'does not exist'),
  ]:
    with pytest.raises(UserError, match='(?s)' + message.replace('?', r'\?')):
      texts(str(place))


def test_a_name_that_looks_like_a_pattern_is_the_file_of_that_name(tmp_path):
  place = write(tmp_path / 'a[1].txt', 'one')
  write(tmp_path / 'a1.txt', 'other')
  assert texts(place) == ['one']
  (tmp_path / 'a+b').mkdir()
  write(tmp_path / 'a+b' / 'x.tsv', 'text\na\n')
  found = list(source.rows(str(tmp_path / 'a+b' / '*.tsv'), DataConfig()))
  assert [row for _, row in found] == [{'text': 'a'}]


def test_what_is_missing_is_named_with_its_field(tmp_path):
  there, missing = write(tmp_path / 'x.txt', 'a\n\nb\n'), str(tmp_path / 'y.txt')
  for field, read in (
    ('train', splits.training), ('validation', splits.validation), ('test', splits.test)
  ):  # fmt: skip
    config = DataConfig(**{'train': there, field: missing})
    with pytest.raises(UserError, match=f'config.data.{field}: .*y.txt does not exist'):
      read(config)
  source.check(f'{there}+{there}', 'config.data.test')
  with pytest.raises(UserError, match='config.data.test: .*y.txt does not exist'):
    source.check(f'{there}+{missing}', 'config.data.test')


def test_rows_need_a_table(tmp_path):
  place = write(tmp_path / 'x.txt', 'a\n')
  with pytest.raises(UserError, match='rows come from'):
    list(source.rows(place, DataConfig()))
  with pytest.raises(UserError, match='config.data.documents'):
    texts(place, documents='row')
  table = write(tmp_path / 'x.tsv', 'text\na\n')
  with pytest.raises(UserError, match='config.data.documents'):
    texts(table, documents='blank_line')


@pytest.mark.parametrize('name', ['x.json', 'x.NDJSON', 'x.json-00000-of-00001'])
def test_json_is_read_as_prose_only_where_that_is_asked_for(tmp_path, name):
  place = write(tmp_path / name, '{"text": "a"}\n', '.gz')
  with pytest.raises(UserError, match=r'name it \.jsonl; with config.data.documents=blank_line'):
    texts(place)
  assert texts(place, documents='blank_line') == ['{"text": "a"}']


def test_embedded_text_is_prose_and_always_the_same():
  first = source.documents('embedded', DataConfig())
  found = list(first.texts())
  assert len(found) > 1000 and len(set(found)) == len(found)
  assert sum(map(len, found)) > 1_000_000
  assert first.identity == source.documents('embedded', DataConfig()).identity
  letters = sum(text.count('e') for text in found) / sum(map(len, found))
  assert letters > 0.05  # English: about every tenth letter.
