"""The learning curves: what is read, and what is drawn."""

import io
import json

import numpy as np
import pytest

from flaxlm.commands import plot
from flaxlm.errors import UserError


@pytest.fixture
def workdir(tmp_path):
  lines = [{'step': s, 'split': 'train', 'loss': 9 / s, 'grad_norm': 1.0} for s in range(1, 21)]
  lines += [{'step': s, 'split': 'validation', 'loss': 10 / s} for s in (10, 20)]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (tmp_path / 'metrics.jsonl').write_text(text + '{"step": 2')
  return tmp_path


def test_curves_of_each_split_and_no_torn_line(workdir):
  found = plot.curves(str(workdir), 'loss')
  assert found['validation'] == ([10, 20], [1.0, 0.5])
  assert found['train'][0] == list(range(1, 21))


def test_the_parts_of_a_bucket_are_one_run(workdir, tmp_path):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines(keepends=True)
  (tmp_path / 'parts').mkdir()
  (tmp_path / 'parts' / 'metrics-00000.jsonl').write_text(''.join(lines[:8]))
  (tmp_path / 'parts' / 'metrics-00001.jsonl').write_text(''.join(lines[8:]))
  assert plot.curves(str(tmp_path / 'parts'), 'loss') == plot.curves(str(workdir), 'loss')


def test_a_picture_is_written_for_several_runs(workdir):
  from matplotlib import image

  plot.main(['--workdir', str(workdir), str(workdir), '--output', str(workdir / 'both.png')])
  plot.main(['--workdir', str(workdir)])
  for name in ('both.png', 'curves.png'):
    pixels = image.imread(io.BytesIO((workdir / name).read_bytes()))
    assert pixels.shape[0] > 400 and pixels.min() < 0.5 < pixels.max()


def test_smoothing_is_a_running_mean():
  values = list(np.random.default_rng(0).normal(size=30))
  smoothed = plot.smooth(values, 2)
  wanted = [np.mean(values[max(0, i - 2) : i + 3]) for i in range(30)]
  np.testing.assert_allclose(smoothed, wanted, atol=1e-12)


def test_mistakes_are_named(workdir, tmp_path):
  with pytest.raises(UserError, match=r"no line has 'los' \(did you mean 'loss'\?\)"):
    plot.curves(str(workdir), 'los')
  with pytest.raises(UserError, match='is not the workdir of a run'):
    plot.curves(str(tmp_path / 'nothing'), 'loss')
  (workdir / 'metrics.jsonl').write_text('{}\n{"step"\n{}\n')
  with pytest.raises(UserError, match=r'metrics.jsonl:2: malformed JSON'):
    plot.curves(str(workdir), 'loss')
