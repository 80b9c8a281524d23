"""What a run will read: counted from the batches themselves."""

import numpy as np
import pytest
import tiny

from flaxlm.config.data import TokenizerConfig
from flaxlm.data import summary, tokenizer


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tiny.write_corpus(tmp_path_factory.mktemp('summary'))
  tokenizer.train(TokenizerConfig(name='bytes', sentinels=20), []).save(folder / 'bytes')
  return folder


def test_lines_of_a_mixture(folder):
  """As many rows of each source as its steps really have."""
  changes = (
    ('data.train', f'a={folder}/text.txt,b={folder}/other.txt'),
    ('data.weights', '1,2'),
    ('tokenizer.path', f'{folder}/bytes'),
  )
  data = tiny.experiment('gpt2.py:mini', folder, changes).train_data
  read = [data.describe(step).count('a: row') for step in range(7)]
  first, second, last = summary.lines(data, 7)
  rows = len(data.rows.sources[0])
  assert first.startswith('a: 360 documents, ') and f' in {rows:,} rows, 1 in 3 of ' in first
  assert f'7 steps read {sum(read)}: {sum(read) / rows:.3g} epochs' in first
  assert f'7 steps read {28 - sum(read)}: ' in second and '2 in 3' in second
  assert f'packing: {np.mean(data.batch(0)["segment_ids"] > 0):.1%} of' in last


def test_lines_of_labelled_rows(folder):
  changes = (('tokenizer.path', f'{folder}/bytes'),)
  data = tiny.experiment('classify.py:encoder', folder, changes).train_data
  line, _ = summary.lines(data, 100)
  assert line.startswith(
    f'train: {tiny.DOCUMENTS * 9 // 10} labelled rows in {len(data.rows)} rows'
  )


def test_every_stream_counts():
  full, empty = np.ones((2, 4), np.int32), np.zeros((2, 4), np.int32)
  batch = {'encoder_segment_ids': full, 'decoder_segment_ids': empty[:, :2], 'inputs': empty}
  assert summary.filled(batch) == pytest.approx(8 / 12)
