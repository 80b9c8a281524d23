"""Eight simulated devices equal one, however the mesh is cut; what cannot be cut is named."""

import dataclasses
import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flaxlm import sharding
from flaxlm.errors import UserError
from flaxlm.training.paths import leaf_paths
from flaxlm.training.step import make_train_step

PLACES = ('gpt2.py:mini', 'bert.py:mini', 't5.py:mini', 'xlnet.py:mini')
MESHES = ((8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 8, 1))
STEPS = 3
# Heads, width and MLP divide over every axis of every mesh above.
CHANGES = (
  ('global_batch_size', '16'),
  ('num_microbatches', '2'),
  ('optimizer.weight_decay', '0.1'),
)


def config_on(place, folder, mesh, **changes):
  config = tiny.load(place, folder, CHANGES)
  return dataclasses.replace(config, mesh=mesh, **changes)


def train(experiment, batches):
  """(losses by step and term, first gradient's norm by leaf, shape of a shard by leaf)."""
  state = tiny.random_state(experiment)
  losses, norms = [], None
  for batch in batches:
    state, metrics = experiment.train_step(state, experiment.put(batch))
    losses.append([metrics[name].value() for name in ('loss', *experiment.objective.terms)])
    norms = metrics['leaf_norms'].tolist() if norms is None else norms
  leaves = leaf_paths(state.params)
  parts = {path: leaf.sharding.shard_shape(leaf.shape) for path, leaf in leaves.items()}
  return losses, norms, parts


def uneven(batches):
  """Rows that weigh differently, so that a mean over devices of means would show."""
  for batch in batches:
    for key in batch:
      if key.endswith('weights'):
        columns = np.arange(batch[key].shape[1])
        rows = np.arange(len(batch[key]))[:, None]
        batch[key] = batch[key] * ((columns * 7 + rows * 3) % 16 <= rows)
  return batches


def mapped(experiment, batches):
  """`train` under jax.pmap: a device has a part of the rows and all of the parameters."""
  devices = jax.devices()[:4]
  step = make_train_step(
    experiment.model, experiment.objective, experiment.optimizer, seed=0, axis_name='rows'
  )
  state = jax.tree.map(np.asarray, tiny.random_state(experiment))
  split = lambda x: x.reshape(len(devices), -1, *x.shape[1:])
  memory = jax.tree.map(split, state.extras)  # of each row
  state = jax.tree.map(lambda x: jnp.stack([x] * len(devices)), state).replace(extras=memory)
  step = jax.pmap(step, axis_name='rows', devices=devices)
  losses, norms = [], None
  for batch in batches:
    state, metrics = step(state, jax.tree.map(split, batch))
    first = jax.tree.map(lambda x: x[0], metrics)
    losses.append([first[name].value() for name in ('loss', *experiment.objective.terms)])
    norms = first['leaf_norms'].tolist() if norms is None else norms
  # Every device has made the same update.
  for leaf in jax.tree.leaves(state.params):
    np.testing.assert_array_equal(leaf[0], leaf[-1])
  return losses, norms


def measure(folder, runs):
  """What the process with eight devices prints: recipe -> way to run it -> losses, norms, parts.

  runs: recipe -> meshes, or 'pmap' in the place of one.
  """
  found = {}
  for place, meshes in runs.items():
    one = tiny.build(
      config_on(place, folder, (1, 1, 1)), folder / 'no_run', devices=jax.devices()[:1]
    )
    batches = uneven([one.train_data.batch(i) for i in range(STEPS)])
    found[place] = {'one': train(one, batches)}
    for mesh in meshes:
      if mesh == 'pmap':
        found[place][mesh] = mapped(one, batches)
        continue
      experiment = tiny.build(config_on(place, folder, tuple(mesh)), folder / 'no_run')
      assert experiment.mesh.size == 8
      found[place]['x'.join(map(str, mesh))] = train(experiment, batches)
  return found


def in_a_process(folder, runs):
  """`measure` where JAX sees eight devices, which this process cannot be told any more."""
  program = (
    'import json, pathlib, sys; sys.path.insert(0, sys.argv[1]); import test_devices as t; '
    'folder, runs = json.loads(sys.argv[2]); '
    'print(json.dumps(t.measure(pathlib.Path(folder), runs)))'
  )
  flags = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
  result = subprocess.run(
    [sys.executable, '-c', program, str(tiny.ROOT / 'tests'), json.dumps([str(folder), runs])],
    env=os.environ | {'XLA_FLAGS': flags, 'PYTHONPATH': str(tiny.ROOT)},
    cwd=tiny.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert not result.returncode, result.stderr[-3000:]
  return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('devices'))


def assert_equal_to_one(found):
  """Sums are added in another order, no more. Norms are held against the largest as well: the
  gradient of a key's bias is nothing but rounding."""
  losses, norms, _ = found['one']
  assert np.isfinite(losses).all() and len({round(step[0], 3) for step in losses}) == STEPS
  for way, (other_losses, other_norms, *_) in found.items():
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5, err_msg=way)
    atol = 1e-6 * max(norms)
    np.testing.assert_allclose(other_norms, norms, rtol=1e-5, atol=atol, err_msg=way)


# Every family once, every kind of mesh once; the rest of the product is in the full suite.
QUICK = {
  'gpt2.py:mini': [(2, 2, 2)],
  'bert.py:mini': [(8, 1, 1), 'pmap'],
  't5.py:mini': [(1, 4, 2)],
}


@pytest.fixture(scope='module')
def quick(folder):
  return in_a_process(folder, QUICK)


@pytest.mark.parametrize('place', QUICK)
def test_eight_devices_equal_one(quick, place):
  assert_equal_to_one(quick[place])


def test_parameters_are_cut_as_the_rules_say(quick):
  """embed lies along fsdp, heads and mlp along tensor, the vocabulary along tensor."""
  (_, _, whole), (_, _, parts) = quick['gpt2.py:mini']['one'], quick['gpt2.py:mini']['2x2x2']
  kernel = 'trunk/stack/layers/attention/query/kernel'  # [layers, embed, heads, head_dim]
  assert (whole[kernel], parts[kernel]) == ([2, 16, 2, 8], [2, 8, 1, 8])
  table = 'trunk/token/table'
  assert [a // b for a, b in zip(whole[table], parts[table], strict=True)] == [2, 2]
  _, _, parts = quick['bert.py:mini']['8x1x1']
  assert parts == quick['bert.py:mini']['one'][2]  # `data` copies parameters, it does not cut them.


@pytest.mark.full
@pytest.mark.parametrize('place', PLACES)
def test_eight_devices_equal_one_on_every_mesh(folder, place):
  assert_equal_to_one(in_a_process(folder, {place: ['pmap', *MESHES]})[place])


# --------------------------------------------------------------------------- what cannot be cut


class Mesh8:
  """As much of a mesh of eight devices as the rules read."""

  def __init__(self, *sizes):
    self.shape = dict(zip(sharding.AXES, sizes, strict=True))
    self.axis_names = sharding.AXES


def boxed(names, shape):
  return {
    'trunk': {'out': {'kernel': nn.Partitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)}}
  }


RULES = {'batch': ('data', 'fsdp'), 'embed': ('fsdp',), 'mlp': ('tensor',)}


@pytest.mark.parametrize(
  ('names', 'shape', 'message'),
  [
    (('embed', 'mpl'), (8, 8), "no rule for axis 'mpl' of trunk/out/kernel (did you mean 'mlp'?)"),
    (('embed', 'mlp'), (8, 7), "axis 'mlp' of trunk/out/kernel has size 7"),
    (('embed', 'mlp'), (6, 8), "axis 'embed' of trunk/out/kernel has size 6"),
  ],
)
def test_a_parameter_that_cannot_be_cut_is_named(names, shape, message):
  with pytest.raises(UserError) as error:
    sharding.parameter_shardings(boxed(names, shape), Mesh8(1, 4, 2), RULES)
  assert message in str(error.value)


@pytest.mark.parametrize(
  ('mesh', 'message'),
  [
    ((3, 1, 1), 'config.mesh: 3x1x1 is 3 devices, but there are 8'),
    ((-1, 3, 1), 'config.mesh: 3 does not divide the 8 devices'),
    ((4, 1, 1), 'config.mesh: 4x1x1 is 4 devices, but there are 8'),
  ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_an_error(mesh, message):
  with pytest.raises(UserError) as error:
    sharding.make_mesh(mesh, [object()] * 8)
  assert message in str(error.value)


def test_a_batch_that_does_not_divide_is_named():
  with pytest.raises(UserError, match='config.x: 12 rows do not divide over 8 devices; .* is 16'):
    sharding.check_batch(Mesh8(2, 4, 1), RULES, 12, 'config.x')


@pytest.mark.parametrize(
  ('rules', 'message'),
  [
    (['batch=data', 'embed'], "config.sharding_rules: 'embed' is not LOGICAL=MESH_AXIS"),
    (['embed=fsdp'], "no rule for axis 'batch'"),
    (['batch=data', 'embed=tensr'], "no mesh axis 'tensr' (did you mean 'tensor'?)"),
  ],
)
def test_a_malformed_rule_is_named(rules, message):
  with pytest.raises(UserError) as error:
    sharding.parse_rules(rules)
  assert message in str(error.value)


def test_a_missing_rule_names_a_parameter_of_the_model(folder):
  rules = tuple(r for r in tiny.load(PLACES[0], folder).sharding_rules if not r.startswith('mlp='))
  config = config_on(PLACES[0], folder, (1, 1, 1), sharding_rules=rules)
  with pytest.raises(UserError) as error:
    tiny.build(config, folder / 'no_run', devices=jax.devices()[:1])
  assert str(error.value).startswith(
    "config.sharding_rules: no rule for axis 'mlp' of trunk/stack/layers/mlp/"
  )
