"""Saving, keeping, the digest, and what happens to damaged or half-written checkpoints."""

import contextlib
import dataclasses
import json
import resource
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import test_distributed
from conftest import assert_same_tree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxlm.config.safety import CheckpointConfig
from flaxlm.errors import UserError
from flaxlm.paths import leaf_paths
from flaxlm.training import checkpoint
from flaxlm.types import TrainState

META = {'config': {'a': [1, 2.5, None]}, 'tokenizer': 'abc'}


def make_state(step=0, seed=0):
  rng = np.random.default_rng(seed + step)
  params = {
    'trunk': {'kernel': jnp.float32(rng.normal(size=(8, 5))), 'scale': jnp.ones(5, jnp.bfloat16)},
    'head': {'bias': jnp.float32(rng.normal(size=3))},
  }
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
  return TrainState(jnp.int32(step), params, optimizer.init(params), {})


def abstract(state):
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)


def write(directory, steps, losses=None, **fields):
  checkpoints = checkpoint.Checkpoints(directory, dataclasses.replace(CheckpointConfig(), **fields))
  for i, step in enumerate(steps):
    checkpoints.save(step, make_state(step), META, {'loss': losses[i]} if losses else None)
  checkpoints.close()
  return checkpoints


def read_state(directory):
  def read(step, meta):
    return checkpoint.restore_tree(directory, step, abstract(make_state()), meta)

  return checkpoint.newest(directory, read)


def array_files(directory, step):
  """Files of the arrays that a restore reads, the one with the most bytes first."""
  files = [p for p in (directory / str(step) / 'state').rglob('d/*') if p.is_file()]
  return sorted(files, key=lambda p: -p.stat().st_size)


def test_state_comes_back_bit_for_bit_in_its_own_types(tmp_path):
  write(tmp_path, [3])
  step, meta, state, damaged = read_state(tmp_path)
  assert (step, damaged, meta['tokenizer'], meta['config']) == (3, [], 'abc', META['config'])
  assert_same_tree(state, make_state(3))


def test_a_directory_may_be_relative(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write('runs/a', [3])
  assert_same_tree(read_state('runs/a')[2], make_state(3))
  assert checkpoint.stored_params('runs/a', 3)['head/bias'].shape == (3,)


@pytest.mark.parametrize(
  'fields,losses,kept',
  [
    ({'keep_last': 2}, None, [40, 50]),
    ({'keep_last': 1}, [3.0, 1.0, 2.0, 4.0, 3.0], [20, 50]),
    ({'keep_last': 1, 'best_mode': 'max'}, [3.0, 1.0, 2.0, 4.0, 3.0], [40, 50]),
    ({'keep_last': 1, 'keep_every_steps': 20}, None, [20, 40, 50]),
    ({'keep_last': 1}, [float('nan'), 9.0, float('nan'), 10.0, float('inf')], [20, 50]),
  ],
)
def test_what_is_kept(tmp_path, fields, losses, kept):
  write(tmp_path, [10, 20, 30, 40, 50], losses, **fields)
  assert checkpoint.steps_in(tmp_path) == kept


def test_the_best_is_known_after_a_restart(tmp_path):
  write(tmp_path, [10, 20], [1.0, 2.0], keep_last=1)
  checkpoints = write(tmp_path, [30, 40], [1.5, 3.0], keep_last=1)
  assert checkpoint.steps_in(tmp_path) == [10, 40]
  assert checkpoint.find(tmp_path, 'best') == [10]
  assert checkpoints.is_best({'loss': 0.9}) and not checkpoints.is_best({'loss': 1.1})


def test_another_best_metric_judges_what_was_measured_before_too(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path, CheckpointConfig(keep_last=3))
  for step, metrics in ((1, {'loss': 1.0, 'accuracy': 0.8}), (2, {'loss': 2.0, 'accuracy': 0.9})):
    checkpoints.save(step, make_state(step), META, metrics)
  checkpoints.close()
  assert checkpoint.find(tmp_path, 'best') == [1]
  config = CheckpointConfig(keep_last=1, best_metric='accuracy')
  checkpoints = checkpoint.Checkpoints(tmp_path, config)
  assert checkpoints.is_best({'accuracy': 0.91}) and not checkpoints.is_best({'accuracy': 0.89})
  meta = META | {'config': {'checkpoint': dataclasses.asdict(config)}}
  checkpoints.save(3, make_state(3), meta, {'loss': 0.5, 'accuracy': 0.7})
  checkpoints.close()
  assert checkpoint.steps_in(tmp_path) == [2, 3]
  assert checkpoint.find(tmp_path, 'best') == [2]


def test_a_flipped_bit_is_noticed_or_harmless_in_every_file(tmp_path, capsys):
  """Descriptions of the arrays, their places and the experiment as well as the arrays."""
  write(tmp_path, [1, 2])
  root, noticed = tmp_path / '2', set()
  for path in sorted(path for path in root.rglob('*') if path.is_file()):
    with flipped_bit(path):
      step, _, state, damaged = read_state(tmp_path)
      assert_same_tree(state, make_state(step))
      assert (step, damaged) in ((2, []), (1, [2]))
      if step == 1:
        noticed.add(str(path.relative_to(root).parent))
  assert noticed >= {'meta', 'state', 'state/d'}
  assert 'DAMAGED' in capsys.readouterr().err


@contextlib.contextmanager
def flipped_bit(path):
  """One bit of a file is another."""
  data = path.read_bytes()
  harmed = bytearray(data)
  harmed[len(data) * 2 // 3] ^= 4
  path.write_bytes(harmed)
  yield
  path.write_bytes(data)


def test_what_a_failed_read_leaves_running_is_not_reported(tmp_path, monkeypatch):
  reported = []
  monkeypatch.setattr(sys, 'unraisablehook', reported.append)
  write(tmp_path, [1, 2])
  for path in array_files(tmp_path, 2):
    path.write_bytes(path.read_bytes()[:-7])
  assert read_state(tmp_path)[0] == 1
  for error, expected in (('Event loop is closed', 0), ('anything else', 1)):
    reported.clear()
    sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(error), object=None))
    assert len(reported) == expected


def test_a_changed_value_is_noticed_by_the_digest(tmp_path):
  write(tmp_path, [1])
  meta = checkpoint.read_meta(tmp_path, 1)
  path = 'params/head/bias'
  meta['digest'][path] = f'{int(meta["digest"][path], 16) ^ 1:016x}'
  with pytest.raises(checkpoint.Damaged, match='digest of params/head/bias'):
    checkpoint.restore_tree(tmp_path, 1, abstract(make_state()), meta)


def test_a_damaged_step_can_be_saved_again(tmp_path):
  write(tmp_path, [1, 2])
  (tmp_path / '2' / 'meta' / 'metadata').unlink()
  checkpoint.set_aside(tmp_path, read_state(tmp_path)[3])
  write(tmp_path, [2])
  step, _, state, _ = read_state(tmp_path)
  assert step == 2
  assert_same_tree(state, make_state(2))


@pytest.mark.parametrize('harm', ['truncate', 'remove', 'meta', 'meta value', 'no state', 'empty'])
def test_every_other_damage_is_noticed(tmp_path, harm):
  write(tmp_path, [1, 2])
  meta = tmp_path / '2' / 'meta' / 'metadata'
  if harm == 'truncate':
    for path in array_files(tmp_path, 2):
      path.write_bytes(path.read_bytes()[:-7])
  elif harm == 'remove':
    for path in array_files(tmp_path, 2):
      path.unlink()
  elif harm == 'meta':
    meta.write_text(meta.read_text()[:-20])
  elif harm == 'meta value':
    meta.write_text(meta.read_text().replace('2.5', '2.4'))
  else:
    for path in sorted((tmp_path / '2').rglob('*'), reverse=True):
      if harm == 'empty' or 'state' in path.parts:
        path.rmdir() if path.is_dir() else path.unlink()
  assert read_state(tmp_path)[0] == 1


def test_no_whole_checkpoint_is_an_error_and_none_at_all_is_not(tmp_path):
  assert read_state(tmp_path / 'absent') is None
  write(tmp_path, [1])
  (tmp_path / '1' / 'meta' / 'metadata').write_text('{}')
  with pytest.raises(UserError, match='none of the checkpoints'):
    read_state(tmp_path)


@pytest.mark.parametrize(('hidden', 'used'), [('meta', 1), ('params', 1), ('step', 2)])
def test_processes_agree_on_the_newest_whole_checkpoint(tmp_path, monkeypatch, hidden, used):
  """A network file system shows the second less of the newest, for a while."""
  write(tmp_path, [1, 2])
  threads = test_distributed.Threads(monkeypatch, ['a', 'b'])
  read_meta, steps_in, reader = checkpoint.read_meta, checkpoint.steps_in, ocp.Checkpointer.metadata
  late = lambda what, step: (what, step, threads.local.index) == (hidden, 2, 1)

  def read_late_meta(directory, step):
    if late('meta', step):
      raise checkpoint.Damaged('half of it')
    return read_meta(directory, step)

  def metadata(self, path):
    if late('params', int(path.parent.name)):
      raise FileNotFoundError(path)
    return reader(self, path)

  monkeypatch.setattr(checkpoint, 'read_meta', read_late_meta)
  monkeypatch.setattr(ocp.Checkpointer, 'metadata', metadata)
  monkeypatch.setattr(
    checkpoint, 'steps_in', lambda d: [step for step in steps_in(d) if not late('step', step)]
  )

  def work(number):
    read = lambda step, meta: len(checkpoint.stored_params(tmp_path, step))
    return checkpoint.newest(tmp_path, read)[::2]

  assert threads.run(work) == [(used, 3)] * 2


def test_a_save_that_was_cut_short_is_not_the_latest_and_is_removed(tmp_path):
  write(tmp_path, [1])
  torn = tmp_path / '9.orbax-checkpoint-tmp'
  torn.mkdir()
  (torn / 'part').write_text('x')
  assert checkpoint.steps_in(tmp_path) == [1]
  write(tmp_path, [2])
  assert not torn.exists() and checkpoint.steps_in(tmp_path) == [1, 2]


def test_part_of_the_parameters(tmp_path):
  write(tmp_path, [1])
  meta = checkpoint.read_meta(tmp_path, 1)
  stored = checkpoint.stored_params(tmp_path, 1)
  assert {k: v.shape for k, v in stored.items()} == {
    'head/bias': (3,), 'trunk/kernel': (8, 5), 'trunk/scale': (5,),
  }  # fmt: skip
  wanted = leaf_paths(abstract(make_state()).params)
  del wanted['head/bias']
  params = checkpoint.restore_params(tmp_path, 1, wanted, meta)
  expected = leaf_paths(make_state(1).params)
  assert set(params) == {'trunk/kernel', 'trunk/scale'}
  for path, leaf in params.items():
    np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected[path]))


def test_find_lists_what_there_is(tmp_path):
  with pytest.raises(UserError, match='no checkpoint there'):
    checkpoint.find(tmp_path, 'latest')
  write(tmp_path, [1, 2], [1.0, 2.0])
  assert checkpoint.find(tmp_path, 'latest') == [2]
  assert checkpoint.find(tmp_path, 1) == [1]
  assert checkpoint.find(tmp_path, 'average:2') == [1, 2]
  for which in ('average:3', 'average:0', 'average', 'average:x'):
    with pytest.raises(UserError, match=f'--checkpoint={which}: '):
      checkpoint.find(tmp_path, which)
  with pytest.raises(UserError, match='latest, best, average:N, 1, 2'):
    checkpoint.find(tmp_path, '7')


def test_without_an_evaluation_the_best_is_not_known(tmp_path):
  write(tmp_path, [3])
  with pytest.raises(UserError, match='was evaluated; valid are latest, average:N, 3'):
    checkpoint.find(tmp_path, 'best')


def test_saving_leaves_donated_buffers_alone(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path, CheckpointConfig())
  state = make_state(1)
  expected = jax.device_get(state)
  step = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)
  checkpoints.save(1, state, META)
  for _ in range(5):
    state = step(state)
  checkpoints.close()
  assert_same_tree(jax.device_get(read_state(tmp_path)[2]), expected)


def numpy_first_sum(array):
  """The first sum of the digest with Python's integers."""
  size = array.dtype.itemsize
  bits = np.frombuffer(array.tobytes(), f'u{min(size, 4)}').tolist()
  return sum(x * (2 * i + 1) for i, x in enumerate(bits)) % 2**32


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int32', 'bool', 'uint8'])
def test_digest_against_python_integers(dtype):
  array = np.asarray(jnp.asarray(np.random.default_rng(1).normal(size=(7, 3, 5)) * 3).astype(dtype))
  assert checkpoint.digest({'x': jnp.asarray(array)})['x'][:8] == f'{numpy_first_sum(array):08x}'


def test_digest_sees_values_and_their_order_but_not_the_sharding():
  array = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
  whole = checkpoint.digest({'x': jnp.asarray(array)})
  swapped = array.copy()
  swapped[[0, 5]] = swapped[[5, 0]]
  assert checkpoint.digest({'x': jnp.asarray(swapped)}) != whole
  assert checkpoint.digest({'x': jnp.asarray(array.reshape(6, 8))}) == whole  # the same bytes
  devices = jax.devices()
  count = 2 if len(devices) > 1 else 1
  mesh = Mesh(np.array(devices[:count]), ('data',))
  for spec in (PartitionSpec('data'), PartitionSpec(None, 'data'), PartitionSpec()):
    sharded = jax.device_put(array, NamedSharding(mesh, spec))
    assert checkpoint.digest({'x': sharded}) == whole


def test_meta_is_plain_json(tmp_path):
  write(tmp_path, [1], [2.5])
  meta = json.loads((tmp_path / '1' / 'meta' / 'metadata').read_text())
  assert meta['step'] == 1 and meta['metrics'] == {'loss': 2.5}


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_full_disk_is_one_line(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path, CheckpointConfig())
  checkpoints.save(1, make_state(1), META)
  checkpoints.wait()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
  try:
    with pytest.raises(UserError, match=f'{tmp_path}: cannot be written: File too large'):
      checkpoints.save(2, make_state(2), META)
      checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  with contextlib.suppress(UserError):
    checkpoints.close()
  assert checkpoint.steps_in(tmp_path) == [1]
