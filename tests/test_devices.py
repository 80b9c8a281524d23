"""Simulated devices equal one, however the mesh is cut; what cannot be cut is named."""

import dataclasses
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from processes import simulated

from flaxlm import sharding
from flaxlm.config import recipe
from flaxlm.errors import UserError
from flaxlm.paths import leaf_paths
from flaxlm.plan import estimate, hlo
from flaxlm.training import checks, execution

PLACES = ('gpt2.py:mini', 'bert.py:mini', 't5.py:mini', 'xlnet.py:mini')
STEPS = 3
CHANGES = (
  ('global_batch_size', '16'),
  ('num_microbatches', '2'),
  ('optimizer.weight_decay', '0.1'),
)
# Adam turns rounding into noise where a gradient is analytically zero; SGD does not.
SGD = (('optimizer.name', 'sgd'), ('optimizer.learning_rate', '0.1'))


def build_on(place, folder, way):
  """The experiment on a mesh such as '2x4x1', on as many devices; 'pmap8' maps over 8.

  'sgd' before either takes that optimizer. Heads, width and MLP divide over every axis of the
  meshes below.
  """
  sgd, way = way.startswith('sgd'), way.removeprefix('sgd ')
  mapped = way.startswith('pmap')
  mesh = (int(way[4:]), 1, 1) if mapped else tuple(map(int, way.split('x')))
  config = tiny.load(place, folder, CHANGES[: 2 if sgd else 3] + SGD * sgd)
  config = dataclasses.replace(config, mesh=mesh, parallelism='pmap' if mapped else 'jit')
  return tiny.build(config, folder / 'no_run', devices=jax.devices()[: math.prod(mesh)])


def train(experiment, batches):
  """Of a few steps: losses by step and term, the first gradient's norm by leaf, parameters; of the
  program, where it has only data and fsdp: bytes that a device gets from others."""
  state = tiny.random_state(experiment)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  losses, norms, step, moved = [], None, experiment.train_step, 0.0
  if experiment.config.parallelism == 'jit' and experiment.mesh.shape['tensor'] == 1:
    step = step.lower(state, experiment.put(batches[0])).compile()
    moved = sum(kind.bytes for kind in estimate.gather(hlo.parse(step.as_text())))
  for batch in batches:
    state, metrics = step(state, experiment.put(batch))
    losses.append([metrics[name].value() for name in ('loss', *experiment.objective.terms)])
    norms = metrics['leaf_norms'].tolist() if norms is None else norms
  same = lambda leaf, where: leaf.sharding.is_equivalent_to(where, leaf.ndim)
  assert all(jax.tree.leaves(jax.tree.map(same, state, shardings)))
  leaves = leaf_paths(state.params)
  parts = {path: leaf.sharding.shard_shape(leaf.shape) for path, leaf in leaves.items()}
  values = {path: np.asarray(leaf).tolist() for path, leaf in leaves.items()}
  return {'losses': losses, 'norms': norms, 'parts': parts, 'params': values, 'moved': moved}


def measure(folder, runs):
  """What the process with eight devices prints: recipe -> way -> what `train` returns.

  runs: recipe -> ways, see `build_on`. One device is added to them, with the same optimizers.
  """
  found = {}
  for place, ways in runs.items():
    ones = sorted({'sgd 1x1x1' if way.startswith('sgd') else '1x1x1' for way in ways})
    found[place] = {}
    for way in (*ones, *ways):
      experiment = build_on(place, folder, way)
      if way == ones[0]:
        batches = tiny.uneven([experiment.train_data.batch(i) for i in range(STEPS)])
      found[place][way] = train(experiment, batches)
  return found


def in_a_process(folder, runs):
  """`measure` where JAX sees eight devices, which this process cannot be told any more."""
  program = (
    'import json, pathlib, sys; import test_devices as t; '
    'folder, runs = json.loads(sys.argv[1]); '
    'print(json.dumps(t.measure(pathlib.Path(folder), runs)))'
  )
  printed = simulated(program, json.dumps([str(folder), runs]))
  return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('devices'))


def assert_equal_to_one(found):
  """Sums are added in another order, no more. Norms are held against the largest as well: the
  gradient of a key's bias is nothing but rounding."""
  for way, other in found.items():
    one = found['sgd 1x1x1' if way.startswith('sgd') else '1x1x1']
    losses = one['losses']
    assert np.isfinite(losses).all() and len({round(step[0], 3) for step in losses}) == STEPS
    np.testing.assert_allclose(other['losses'], losses, rtol=1e-5, err_msg=way)
    atol = 1e-6 * max(one['norms'])
    np.testing.assert_allclose(other['norms'], one['norms'], rtol=1e-5, atol=atol, err_msg=way)
    # Parameters are gathered, and their gradients added, for each micro-batch; rows stay.
    own = sum(4 * np.size(value) for value in one['params'].values())
    assert other['moved'] < 2 * 4 * own, (way, other['moved'] / own)
    for path, value in one['params'].items() if way.startswith('sgd') else ():
      atol = 1e-5 * np.abs(value).max()
      np.testing.assert_allclose(
        other['params'][path], value, rtol=0, atol=atol, err_msg=f'{way}: {path}'
      )


# Every family once, every kind of mesh once; the rest of the product is in the full suite.
QUICK = {
  'gpt2.py:mini': ['2x2x2'],
  'bert.py:mini': ['pmap4'],
  't5.py:mini': ['sgd 1x2x1'],
}
EVERY = ('2x1x1', '1x4x1', '8x1x1', '2x2x2', '1x4x2', '1x8x1', 'pmap1', 'pmap2', 'pmap8')


@pytest.fixture(scope='module')
def quick(folder):
  return in_a_process(folder, QUICK)


@pytest.mark.parametrize('place', QUICK)
def test_devices_equal_one(quick, place):
  assert_equal_to_one(quick[place])


def test_parameters_are_cut_as_the_rules_say(quick):
  """embed lies along fsdp, heads and mlp along tensor, the vocabulary along tensor."""
  whole, parts = (quick['gpt2.py:mini'][way]['parts'] for way in ('1x1x1', '2x2x2'))
  kernel = 'trunk/stack/layers/attention/query/kernel'  # [layers, embed, heads, head_dim]
  assert (whole[kernel], parts[kernel]) == ([2, 16, 2, 8], [2, 8, 1, 8])
  table = 'trunk/token/table'
  assert [a // b for a, b in zip(whole[table], parts[table], strict=True)] == [2, 2]
  bert = quick['bert.py:mini']
  # `data` copies parameters, it does not cut them.
  assert bert['pmap4']['parts'] == bert['1x1x1']['parts']


@pytest.mark.full
@pytest.mark.parametrize('place', PLACES)
def test_devices_equal_one_on_every_mesh(folder, place):
  ways = [*EVERY, 'sgd 2x2x2', 'sgd pmap8']
  assert_equal_to_one(in_a_process(folder, {place: ways})[place])


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
    (('embed', 'mlp'), (6, 8), "4 devices (fsdp); it does over 2, and 'embed=' in config.sharding"),
  ],
)
def test_a_parameter_that_cannot_be_cut_is_named(names, shape, message):
  with pytest.raises(UserError) as error:
    sharding.parameter_shardings(boxed(names, shape), Mesh8(1, 4, 2), RULES)
  assert message in str(error.value)


class Chip:
  """What a mesh asks of a device: here of the first to the last of a v5e slice, 2 x 2 on a host."""

  device_kind = 'TPU v5 lite'
  core_on_chip = 0

  def __init__(self, platform, number=0, width=1):
    self.platform, self.id, self.process_index = platform, number, number // 4
    host_y, host_x = divmod(self.process_index, max(width // 2, 1))
    self.coords = (2 * host_x + number % 2, 2 * host_y + number // 2 % 2, 0)


@pytest.mark.parametrize('sizes', [(1, 16, 1), (16, 1, 1), (4, 4, 1), (1, 4, 4)])
def test_neighbours_on_an_axis_are_linked_on_a_slice(sizes):
  """4 x 4 chips, whose links go round in both directions."""
  mesh = sharding.make_mesh(sizes, [Chip('tpu', number, 4) for number in range(16)])
  places = np.array([chip.coords for chip in mesh.devices.flat]).reshape(*sizes, 3)
  assert len(set(map(tuple, places.reshape(-1, 3)))) == 16
  for axis in np.flatnonzero(np.array(sizes) > 1):
    apart = np.abs(np.roll(places, 1, axis) - places)
    assert np.minimum(apart, 4 - apart).sum(-1).max() == 1


def test_part_of_a_slice_keeps_its_order():
  chips = [Chip('tpu', number, 4) for number in range(12)]
  assert list(sharding.make_mesh((12, 1, 1), chips).devices.flat) == chips


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
    sharding.make_mesh(mesh, [Chip('cpu')] * 8)
  assert message in str(error.value)


def test_a_batch_that_does_not_divide_is_named():
  with pytest.raises(UserError, match='config.x: 12 rows do not divide over 8 devices; .* is 16'):
    sharding.check_batch(Mesh8(2, 4, 1), RULES, 12, 'config.x')


@pytest.mark.parametrize(
  ('mesh', 'rows', 'found', 'said'),
  [
    ('1,4,2', 8, (1, 4, 2), False),
    ('1,-1,1', 16, (1, 8, 1), False),
    ('-1,1,1', 64, (8, 1, 1), False),
    ('-1,1,1', 6, (2, 1, 1), False),
    ('4,1,1', 8, (8, 1, 1), False),
    ('-1,4,2', 6, (2, 1, 1), True),  # rows that do not divide,
    ('1,16,1', 16, (8, 1, 1), True),  # devices that are not here,
    ('1,2,4', 4, (4, 1, 1), True),  # and heads that four devices cannot share.
    ('1,16,1', 5, (1, 1, 1), False),  # One device has everything anyhow.
  ],
)
def test_any_machine_evaluates_what_another_has_trained(
  monkeypatch, capsys, root, mesh, rows, found, said
):
  """On the mesh of the run or, where that does not fit, with all parameters on as many devices as
  divide the rows of a batch, whatever the micro-batches were."""
  monkeypatch.setattr(jax, 'devices', lambda: [Chip('cpu')] * 8)
  for changes in (
    {'global_batch_size': rows, 'num_microbatches': rows},
    {'evaluation.batch_size': rows},
  ):
    pairs = [(key, str(value)) for key, value in (changes | {'mesh': mesh}).items()]
    config = recipe.load(str(root / 'configs/quickstart.py'), pairs)
    where = checks.evaluation_mesh(config, boxed(('embed', 'heads'), (16, 2)))
    assert where.devices.shape == found
    assert ('every device has all parameters' in capsys.readouterr().err) == said
  with pytest.raises(UserError, match='config.evaluation.batch_size: .* do not divide over 128'):
    checks.check_batches(config, Mesh8(128, 1, 1), RULES, training=False)


@pytest.mark.parametrize('rule', ['batch=data', 'batch=data+fsdp', 'batch='])
def test_rows_may_lie_along_any_axes_or_none(rule):
  mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
  rows = sharding.batch_sharding(mesh, sharding.parse_rules([rule]))
  assert sharding.host_parts(rows) == ((0,), 1)


@pytest.mark.parametrize('sizes', [(1, 2, 1), (2, 1, 4)])
def test_a_mapped_step_does_not_divide_parameters(sizes):
  mesh = sharding.make_mesh(sizes, [Chip('cpu')] * math.prod(sizes))
  with pytest.raises(UserError, match=r"config.parallelism: 'pmap' .* set config.mesh=-1,1,1 or"):
    execution.check_mesh('pmap', mesh)
  execution.check_mesh('jit', mesh)


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
  config = dataclasses.replace(tiny.load(PLACES[0], folder), sharding_rules=rules)
  with pytest.raises(UserError) as error:
    tiny.build(config, folder / 'no_run', devices=jax.devices()[:1])
  assert str(error.value).startswith(
    "config.sharding_rules: no rule for axis 'mlp' of trunk/stack/layers/mlp/"
  )
