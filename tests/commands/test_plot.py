"""The learning curves: what is read, and what is drawn."""

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
  plot.main(['--workdir', str(workdir), str(workdir), '--output', str(workdir / 'both.png')])
  plot.main(['--workdir', str(workdir)])
  for name in ('both.png', 'curves.png'):
    assert (workdir / name).read_bytes().startswith(b'\x89PNG')


def test_a_run_has_a_colour_training_is_smoothed_and_held_out_text_marked():
  steps = list(range(1, 101))
  values = list(np.random.default_rng(0).normal(size=100))
  curves = {'train': (steps, values), 'validation': ([50, 100], [2.0, 1.0]), 'b': ([50], [3.0])}
  axes = plot.draw({'runs/x': curves, 'runs/y': curves}, 'loss').axes[0]
  assert len(axes.lines) == 8
  for name, colour, lines in (('x', 'C0', axes.lines[:4]), ('y', 'C1', axes.lines[4:])):
    faint, smoothed, *held_out = lines
    assert {line.get_color() for line in lines} == {colour}
    np.testing.assert_array_equal(faint.get_xydata(), np.transpose([steps, values]))
    np.testing.assert_array_equal(smoothed.get_xydata().T, [steps, plot.smooth(values, 3)])
    assert faint.get_alpha() < 1 and smoothed.get_alpha() is None
    assert [line.get_xydata().tolist() for line in held_out] == [[[50, 2], [100, 1]], [[50, 3]]]
    assert [line.get_marker() for line in lines] == ['None', 'None', 'o', 's']
    labels = [line.get_label() for line in lines[1:]]
    assert labels == [f'{name} train', f'{name} validation', f'{name} b']
  assert (axes.get_xlabel(), axes.get_ylabel()) == ('step', 'loss (nats per target)')
  # Of one run the name is not needed, and of another metric the unit is not known.
  axes = plot.draw({'runs/x': {'validation': ([1], [0.5])}}, 'mlm_accuracy').axes[0]
  assert (axes.lines[0].get_label(), axes.get_ylabel()) == ('validation', 'mlm accuracy')


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
