"""A run goes on with other devices, another mesh or mode: the same batches, the same losses.

One of them is bad, and is skipped whatever the mesh. And a checkpoint whose parts lie on several
devices is as well guarded against damage.
"""

import dataclasses
import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny
from processes import simulated

from flaxlm.training import checkpoint, loop
from flaxlm.training.writers import read_metrics

CUT, BAD, STEPS = 5, 8, 25
CHANGES = (
  ('global_batch_size', '16'),
  ('total_steps', str(STEPS)),
  ('checkpoint.every_steps', '5'),
  ('checkpoint.keep_last', '9'),
  ('evaluation.every_steps', '0'),
  ('logging.every_steps', '1'),
  ('guard.policy', 'skip'),
)
# Draws of dropout differ between the modes, not between meshes.
QUIET = (('model.dropout_rate', '0'), ('model.embedding_dropout_rate', '0'))
# Recipe: (changes, way of the first run, ways in which it goes on after CUT steps).
RUNS = {
  'gpt2.py:mini': (
    (('model.dropout_rate', '0.1'),),
    '2x2x2',
    ('4x1x1', '1x2x1', '1x1x1', '8x1x1', '1x4x2'),
  ),
  'xlnet.py:mini': (QUIET[:1], '2x2x2', ('2x1x2', '1x1x1', 'pmap4')),
  'bert.py:mini': (QUIET[:1], 'pmap8', ('2x2x2', 'pmap2', '1x1x1')),
}


def fit(place, folder, way, workdir, changes=()):
  """Trains on a mesh such as '2x4x1', on as many devices; 'pmap8' maps over 8."""
  mapped = way.startswith('pmap')
  mesh = (int(way[4:]), 1, 1) if mapped else tuple(map(int, way.split('x')))
  config = tiny.load(place, folder, CHANGES + tuple(changes))
  config = dataclasses.replace(config, mesh=mesh, parallelism='pmap' if mapped else 'jit')
  experiment = tiny.build(config, workdir, devices=jax.devices()[: math.prod(mesh)])
  # Evaluation is the business of tests of its own.
  train_data = Poisoned(experiment.train_data)
  return loop.fit(dataclasses.replace(experiment, train_data=train_data, eval_data={}), workdir)


class Poisoned:
  """Batches, of which number BAD has targets that do not weigh anything that is a number."""

  def __init__(self, data):
    self._data = data

  def __getattr__(self, name):
    return getattr(self._data, name)

  def iterate(self, start):
    for number, batch in enumerate(self._data.iterate(start), start):
      weights = batch['target_weights'] * (np.nan if number == BAD else 1)
      yield batch | {'target_weights': weights.astype(np.float32)}


def lines(workdir):
  """Step -> loss (NaN where that is none), share of real tokens, steps skipped so far."""
  names = 'loss', 'packing', 'skipped'
  number = lambda value: float('nan') if value is None else value
  return {line['step']: [number(line[name]) for name in names] for line in read_metrics(workdir)}


def measure(folder, place):
  """What the process with eight devices prints: way -> step -> loss and share of real tokens."""
  changes, way, others = RUNS[place]
  whole = folder / 'whole'
  fit(place, folder, way, whole, changes)
  found = {'whole': lines(whole)}
  for other in others:
    cut = folder / other
    for name in ('tokenizer', f'checkpoints/{CUT}'):
      shutil.copytree(whole / name, cut / name)
    fit(place, folder, other, cut, changes)
    found[other] = lines(cut)
  found['damaged'] = damaged(place, folder, changes, whole / 'checkpoints')
  return found


def damaged(place, folder, changes, directory):
  """Folders of those files of which a flipped byte was noticed; in the others it did no harm."""
  config = tiny.load(place, folder, CHANGES + tuple(changes))
  abstract = tiny.build(dataclasses.replace(config, mesh=(1, 4, 2)), folder).abstract_state

  def read():
    restore = lambda step, meta: checkpoint.restore_tree(directory, step, abstract, meta)
    step, _, state, _ = checkpoint.newest(directory, restore)
    return step, jax.device_get(state)

  (_, expected), noticed = read(), set()
  root = directory / str(STEPS)
  for path in sorted(path for path in root.rglob('*') if path.is_file()):
    data = path.read_bytes()
    harmed = bytearray(data)
    harmed[len(data) // 2] ^= 16
    path.write_bytes(harmed)
    step, state = read()
    if step == STEPS:
      jax.tree.map(np.testing.assert_array_equal, state, expected)
    else:
      noticed.add(str(path.relative_to(root).parent))
    path.write_bytes(data)
  return sorted(noticed)


@pytest.mark.full
@pytest.mark.parametrize('place', RUNS)
def test_a_run_goes_on_with_other_devices(place, tmp_path):
  folder = tiny.write_corpus(tmp_path)
  program = (
    'import json, pathlib, sys; import test_elastic as t; '
    'print(json.dumps(t.measure(pathlib.Path(sys.argv[1]), sys.argv[2])))'
  )
  printed = simulated(program, str(folder), place, folders=[pathlib.Path(__file__).parent])
  found = json.loads(printed.splitlines()[-1])
  assert {'meta', 'state', 'state/d'} <= set(found.pop('damaged'))
  whole = found.pop('whole')
  assert list(whole) == [str(step) for step in range(1, STEPS + 1)]
  assert set(found) == set(RUNS[place][2])
  steps = [str(step) for step in range(CUT + 1, STEPS + 1)]
  expected = np.array([whole[step] for step in steps])
  # Another batch would show: losses of steps that follow each other are far apart.
  assert np.nanmedian(np.abs(np.diff(expected[:, 0]))) > 1e-3
  assert [step for step in steps if np.isnan(whole[step][0])] == [str(BAD + 1)]
  assert expected[-1, 2] == 1
  for way, other in found.items():
    assert list(other) == steps, way
    np.testing.assert_allclose([other[s] for s in steps], expected, rtol=1e-5, err_msg=way)
