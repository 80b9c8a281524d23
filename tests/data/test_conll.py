"""Sentences of CoNLL files, and lines that do not belong."""

import json

import pytest

from flaxlm.config.data import DataConfig
from flaxlm.data import conll, source
from flaxlm.data.bad_rows import BadRows
from flaxlm.errors import UserError


def read(path, bad=None):
  bad = bad or BadRows('error')
  readers = {source.ANY_OTHER: conll.rows}
  rows = source.rows(str(path), DataConfig(), readers=readers, bad=bad.of('train'))
  return [(where, {k: json.loads(v) for k, v in row.items()}) for where, row in rows]


def test_tabs_spaces_documents_comments_and_blank_lines(tmp_path):
  (tmp_path / 'a.conll').write_text(
    '-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\n# sent_id = 3\n# NN O\n'
  )
  (where, first), (_, second) = read(tmp_path / 'a.conll')
  assert where.endswith('a.conll:3')
  assert first['tokens'] == first['0'] == ['EU', 'rejects'] and first['1'] == ['NNP', 'VBZ']
  assert first['tags'] == first['2'] == ['B-ORG', 'O']
  assert second['tokens'] == ['#'] and second['tags'] == ['O']
  # With tabs, a word may hold a space; a line of white space ends a sentence.
  (tmp_path / 'b.annotated').write_text('New York\tB-LOC\n\t\nx\tO\n')
  rows = [row for _, row in read(tmp_path / 'b.annotated')]
  assert [row['tokens'] for row in rows] == [['New York'], ['x']]


def test_comments_of_conll_u_are_no_words(tmp_path):
  (tmp_path / 'a.conllu').write_text(
    '# newdoc\n# newpar\n# sent_id = 1\n1\tEU\tNOUN\n2\t#\tSYM\n#\tx\tSYM\n\n# newpar id\n1\tx\tX\n'
  )
  rows = [row for _, row in read(tmp_path / 'a.conllu')]
  assert [row['tokens'] for row in rows] == [['1', '2', '#'], ['1']]
  assert rows[0]['1'] == ['EU', '#', 'x']


def test_a_document_ends_a_sentence(tmp_path):
  (tmp_path / 'a.conll').write_text('a O\nb O\n-DOCSTART- -X- O O\nc O\n')
  assert [row['tokens'] for _, row in read(tmp_path / 'a.conll')] == [['a', 'b'], ['c']]


def test_a_space_that_does_not_break_is_part_of_a_word(tmp_path):
  (tmp_path / 'a.conll').write_text('10\u00a0000  B-X \nx  O\n')
  ((_, row),) = read(tmp_path / 'a.conll')
  assert row['tokens'] == ['10\u00a0000', 'x'] and row['tags'] == ['B-X', 'O']


def test_a_blank_behind_a_tab_is_no_part_of_a_tag(tmp_path):
  (tmp_path / 'a.conll').write_text('New York \tB-X \nx\t O\n')
  ((_, row),) = read(tmp_path / 'a.conll')
  assert row['tokens'] == ['New York ', 'x'] and row['tags'] == ['B-X', 'O']


def test_one_column_has_no_tags(tmp_path):
  (tmp_path / 'a.txt').write_text('only\nwords\n')
  ((_, row),) = read(tmp_path / 'a.txt')
  assert row == {'0': ['only', 'words'], 'tokens': ['only', 'words']}


def test_what_is_no_word_of_conll_u_is_left_out(tmp_path):
  lines = ['1\tEr\tPRON', '2-3\tzum\t_', '2\tzu\tADP', '3\tdem\tDET', '3.1\tnix\tVERB']
  (tmp_path / 'a.conllu').write_text('\n'.join(lines) + '\n')
  ((_, row),) = read(tmp_path / 'a.conllu')
  assert row['1'] == ['Er', 'zu', 'dem'] and row['tags'] == ['PRON', 'ADP', 'DET']


@pytest.mark.parametrize('between', ['\t', ' ', '\tNUM\t'])
@pytest.mark.parametrize(
  'words', [['won', '3-4', '5.1'], ['12.50'], ['1', '9.00'], ['6-4', '6-2'], ['1', '3-2', '2']]
)
def test_words_that_look_like_numbers_of_conll_u_are_words(tmp_path, words, between):
  (tmp_path / 'a.conll').write_text(''.join(f'{word}{between}O\n' for word in words))
  ((_, row),) = read(tmp_path / 'a.conll')
  assert row['tokens'] == words


@pytest.mark.parametrize('between', ['\t', ' ', ' NUM '])
def test_no_columns_of_conll_u_number_no_words(tmp_path, between):
  (tmp_path / 'a.conll').write_text(''.join(f'{word}{between}O\n' for word in ('1', '1.5', '2')))
  ((_, row),) = read(tmp_path / 'a.conll')
  assert row['tokens'] == ['1', '1.5', '2']


@pytest.mark.parametrize(
  'content, message',
  [
    (b'a O\nb\n\nc O\n', ':2: 1 columns, but the sentence begins with 2'),
    (b'a O\nb\xff O\n\nc O\n', ':2: not UTF-8'),
  ],
)
def test_a_damaged_sentence_stops_or_is_left_out_whole(tmp_path, content, message):
  (tmp_path / 'a.conll').write_bytes(content)
  with pytest.raises(UserError, match=message):
    read(tmp_path / 'a.conll')
  bad = BadRows('skip')
  assert [row['tokens'] for _, row in read(tmp_path / 'a.conll', bad)] == [['c']]
  assert bad.counts == {'train': 1}


@pytest.mark.full
@pytest.mark.parametrize(
  'name, sentences, words',
  [
    ('wnut17train.conll.xz', 3394, 62730),
    ('emerging.dev.conll', 1009, 15733),
    ('emerging.test.annotated', 1287, 23394),
  ],
)
def test_the_real_files_have_as_many_sentences_as_published(data_folder, name, sentences, words):
  rows = read(data_folder / 'wnut17' / name)
  assert len(rows) == sentences
  assert sum(len(row['tokens']) for _, row in rows) == words
