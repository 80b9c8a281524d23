"""The report of what lies where."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from flaxlm.training import footprint
from flaxlm.types import TrainState


def state_on(sizes):
  """(an abstract state, as much of its mesh as the report reads)."""
  mesh = AbstractMesh(sizes, ('data', 'fsdp', 'tensor'))

  def leaf(shape, *spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(
      shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec))
    )  # fmt: skip

  params = {'trunk': {'table': leaf((1024, 256), 'tensor', 'fsdp'), 'scale': leaf((256,))}}
  state = TrainState(leaf((), dtype=jnp.int32), params, {'mu': params, 'nu': params}, {})
  devices = np.array([types.SimpleNamespace(platform='tpu')] * mesh.size)
  return state, types.SimpleNamespace(size=mesh.size, shape=mesh.shape, devices=devices)


def test_one_line_on_one_device():
  assert list(footprint.report(*state_on((1, 1, 1)))) == [
    'on 1 tpu device: parameters 1.0 MiB, optimizer state 2.0 MiB'
  ]


def test_every_parameter_where_they_are_divided():
  first, *rest = footprint.report(*state_on((2, 4, 2)))
  assert first == (
    'on 16 tpu devices (data 2, fsdp 4, tensor 2): parameters 1.0 MiB (129.0 KiB a device), '
    'optimizer state 2.0 MiB (258.0 KiB a device)'
  )
  assert [line.split() for line in rest] == [
    ['trunk/scale', '1.0', 'KiB', '256'],
    ['trunk/table', '128.0', 'KiB', '1024/tensor', 'x', '256/fsdp'],
  ]


@pytest.mark.parametrize(('sizes', 'whole', 'part'), [((1, 1, 1), 1, 1), ((1, 4, 2), 8, 1)])
def test_bytes_of_the_whole_and_of_a_device(sizes, whole, part):
  state, _ = state_on(sizes)
  table = state.params['trunk']['table']
  assert footprint.total_bytes(table) == 1024 * 256 * 4
  assert footprint.device_bytes(table) * whole == footprint.total_bytes(table) * part
