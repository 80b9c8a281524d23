"""Splits: what is held out is a fixed part, disjoint from training."""

import pytest
from etils import epath

from flaxlm.config.data import DataConfig
from flaxlm.data import splits
from flaxlm.errors import UserError


def corpus(tmp_path, number=10):
  path = tmp_path / 'x.txt'
  path.write_text('\n\n'.join(f'document {i}' for i in range(number)))
  return str(path)


def parts(config):
  train = splits.training(config)
  found = {'train': train} | splits.validation(config)
  for documents in found.values():
    assert documents.num_documents == len(list(documents.texts()))
  return {name: list(documents.texts()) for name, documents in found.items()}


def test_the_last_part_is_held_out(tmp_path):
  found = parts(DataConfig(train=corpus(tmp_path), holdout=0.2))
  assert found == {
    'train': [f'document {i}' for i in range(8)],
    'validation': ['document 8', 'document 9'],
  }


def test_both_parts_have_a_document(tmp_path):
  found = parts(DataConfig(train=corpus(tmp_path, 2), holdout=0.01))
  assert found == {'train': ['document 0'], 'validation': ['document 1']}
  found = parts(DataConfig(train=corpus(tmp_path, 2), holdout=0.99))
  assert found == {'train': ['document 0'], 'validation': ['document 1']}


def test_one_document_is_split_by_characters(tmp_path):
  text = 'a\n\nb' * 100
  (tmp_path / 'x.txt').write_text(text)
  found = parts(DataConfig(train=str(tmp_path / 'x.txt'), documents='file'))
  assert found == {'train': [text[:360]], 'validation': [text[360:]]}


def test_max_rows_cuts_before_holding_out(tmp_path):
  found = parts(DataConfig(train=corpus(tmp_path), max_rows=4, holdout=0.25))
  assert found == {
    'train': ['document 0', 'document 1', 'document 2'],
    'validation': ['document 3'],
  }


def test_named_validation_sets(tmp_path):
  place = corpus(tmp_path)
  (tmp_path / 'y.txt').write_text('other')
  config = DataConfig(train=place, validation=f'same={place},other={tmp_path}/y.txt', max_rows=3)
  found = parts(config)
  assert [len(found[name]) for name in ('train', 'same', 'other')] == [3, 10, 1]
  assert splits.places(place) == {'validation': place}
  for text in ('a=x,b', 'a=x,a=y', 'train=x', 'checkpoint=x', 'a='):
    with pytest.raises(UserError, match='config.data.validation'):
      splits.places(text)


def test_a_file_whose_name_has_an_equals_sign_is_one_place(tmp_path, monkeypatch):
  """Folders in Hive's layout, by a relative path."""
  monkeypatch.chdir(tmp_path)
  for language in ('de', 'en'):
    (tmp_path / f'lang={language}').mkdir()
    (tmp_path / f'lang={language}' / 'part.txt').write_text(language)
  config = DataConfig(train='lang=*/part.txt', validation='lang=en/part.txt')
  assert parts(config) == {'train': ['de', 'en'], 'validation': ['en']}
  config = DataConfig(train='lang=lang=de/part.txt', validation='other=lang=en/part.txt')
  assert parts(config) == {'train': ['de'], 'other': ['en']}


def test_settings_that_no_place_reads_are_errors(tmp_path):
  text, table = corpus(tmp_path), str(tmp_path / 'y.tsv')
  (tmp_path / 'y.tsv').write_text('text\tother\na\tb\n')
  for fields, message in (
    (
      {'train': text, 'text_column': 'other'},
      'text_column: would do nothing: .*x.txt has no columns',
    ),
    ({'train': f'a={text},b=embedded', 'text_column': 'other'}, 'text_column: would do nothing'),
    (
      {'train': 'embedded', 'text_column': 'other'},
      'text_column: would do nothing: .*=embedded has',
    ),
    (
      {'train': 'embedded', 'documents': 'blank_line'},
      'documents: would do nothing: .*=embedded has',
    ),
    ({'train': 'embedded', 'documents': 'row'}, 'documents: `embedded` is not a table'),
    ({'train': 'tfds:nosuch', 'documents': 'file'}, 'documents: tfds:nosuch is a table'),
  ):
    with pytest.raises(UserError, match=f'^config.data.{message}'):
      splits.training(DataConfig(**fields))
  # One that reads it is enough.
  config = DataConfig(train=text, validation=table, text_column='other')
  assert parts(config)['validation'] == ['b']
  config = DataConfig(train='embedded', validation=text, documents='blank_line')
  assert len(parts(config)['validation']) == 10


def test_parts_and_changes_have_their_own_identity(tmp_path):
  place = corpus(tmp_path)
  identities = [
    splits.training(DataConfig(train=place)).identity,
    splits.everything(DataConfig(train=place)).identity,
    splits.validation(DataConfig(train=place))['validation'].identity,
    splits.training(DataConfig(train=place, holdout=0.3)).identity,
    splits.training(DataConfig(train=place, max_rows=5)).identity,
  ]
  corpus(tmp_path, 11)
  identities.append(splits.training(DataConfig(train=place)).identity)
  assert len({str(identity) for identity in identities}) == len(identities)


def test_a_changed_file_is_counted_again(tmp_path):
  config = DataConfig(train=corpus(tmp_path, 10))
  assert splits.everything(config).num_documents == 10
  corpus(tmp_path, 12)
  assert splits.everything(config).num_documents == 12


def test_an_empty_corpus_is_an_error(tmp_path):
  (tmp_path / 'x.txt').write_text(' \n\n \n')
  with pytest.raises(UserError, match='no documents'):
    splits.training(DataConfig(train=str(tmp_path / 'x.txt')))


def test_rows_are_held_out_at_random_and_disjoint(tmp_path):
  path = tmp_path / 'x.tsv'
  path.write_text('text\tlabel\n' + ''.join(f't{i}\t{i // 50}\n' for i in range(100)))
  found = splits.rows(DataConfig(train=str(path), holdout=0.2))
  train, held_out = ([where for where, _ in found[name]] for name in ('train', 'validation'))
  assert len(train) == 80 and len(held_out) == 20
  assert len({*train, *held_out}) == 100
  labels = {row['label'] for _, row in found['validation']}
  assert labels == {'0', '1'}  # The file is sorted by label; its last fifth has one only.
  assert found == splits.rows(DataConfig(train=str(path), holdout=0.2))
  config = DataConfig(train=str(path), validation=str(path), test=str(path), max_rows=7)
  assert {k: len(v) for k, v in splits.rows(config).items()} == {'train': 7, 'validation': 100}
  assert len(splits.rows(config, training=False)['test']) == 100


def test_rows_of_one_group_are_held_out_together(tmp_path):
  path = tmp_path / 'x.tsv'
  path.write_text('text\tlabel\n' + ''.join(f't{i}\t{i % 20}\n' for i in range(100)))
  config = DataConfig(train=str(path), holdout=0.2)
  found = splits.rows(config, held_together='label')
  train, held_out = ({row['label'] for _, row in found[n]} for n in ('train', 'validation'))
  assert len(held_out) == 4 and not train & held_out
  assert {name: len(rows) for name, rows in found.items()} == {'train': 80, 'validation': 20}
  path.write_text('text\tlabel\na\tx\nb\tx\n')
  with pytest.raises(UserError, match='holdout: rows with 1 label cannot be split; set config'):
    splits.rows(config, held_together='label')


def test_named_validation_sets_have_rows_of_their_own(tmp_path):
  """MNLI's matched and mismatched, of which neither is training."""
  for name in ('train', 'a', 'b'):
    (tmp_path / f'{name}.tsv').write_text(f'text\tlabel\n{name} 0\tx\n{name} 1\ty\n')
  validation = f'matched={tmp_path}/a.tsv,mismatched={tmp_path}/b.tsv'
  config = DataConfig(train=f'{tmp_path}/train.tsv', validation=validation)
  found = {name: [row['text'] for _, row in rows] for name, rows in splits.rows(config).items()}
  assert found == {
    'train': ['train 0', 'train 1'], 'matched': ['a 0', 'a 1'], 'mismatched': ['b 0', 'b 1'],
  }  # fmt: skip
  # Evaluation alone does not read what trained.
  (tmp_path / 'train.tsv').unlink()
  assert set(splits.rows(config, training=False)) == {'matched', 'mismatched'}


def test_a_count_that_was_cut_short_is_made_again(tmp_path, monkeypatch):
  config = DataConfig(train=corpus(tmp_path), cache_dir=str(tmp_path / 'cache'))
  kind = type(epath.Path(tmp_path))
  write = kind.write_text

  def cut(path, text, **options):
    write(path, text[:3], **options)
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(kind, 'write_text', cut)
    with pytest.raises(KeyboardInterrupt):
      splits.training(config)
  assert splits.training(config).num_documents == 9
