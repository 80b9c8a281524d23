"""The mesh, and which dimension of which array lies along which of its axes.

Layers name logical axes; `config.sharding_rules` maps them to mesh axes. Nothing outside this file
names a mesh axis. Linen would silently replicate an axis without a rule; here that is an error.

Where parameters lie is said from outside, by the shardings of the state. Where rows of activations
lie is said inside the step, by `keep_rows` and `on_shards`: left to itself, the compiler may gather
the rows of all devices on each of them instead of the parameters (docs/performance.md).
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxlm.errors import UserError, nearest
from flaxlm.paths import path_name

AXES = ('data', 'fsdp', 'tensor')


def make_mesh(shape: Sequence[int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh of `AXES`; a size of -1 takes what is left. All devices are used, or it is an error."""
  devices = list(jax.devices() if devices is None else devices)
  sizes = list(shape)
  if -1 in sizes:
    known = math.prod(n for n in sizes if n != -1)
    if len(devices) % known:
      raise UserError(f'config.mesh: {known} does not divide the {len(devices)} devices')
    sizes[sizes.index(-1)] = len(devices) // known
  if math.prod(sizes) != len(devices):
    raise UserError(
      f'config.mesh: {"x".join(map(str, sizes))} is {math.prod(sizes)} devices, but there are '
      f'{len(devices)}; -1 for one axis takes what is left'
    )
  return Mesh(_arranged(devices, sizes), AXES)


def _arranged(devices: Sequence[jax.Device], sizes: Sequence[int]) -> np.ndarray:
  """The devices in the shape of the mesh, so that neighbours on an axis are linked.

  JAX has such an order for the chips of a whole TPU slice, whose own goes from host to host. All
  others keep theirs: that of the processes, so that the first axis spans several slices.
  """
  slices = {getattr(device, 'slice_index', None) for device in devices}
  if devices[0].platform == 'tpu' and len(slices) == 1:
    grid = np.max([device.coords for device in devices], axis=0) + 1
    if grid.prod() == len(devices):
      return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return np.array(devices).reshape(sizes)


def parse_rules(rules: Sequence[str]) -> dict[str, tuple[str, ...]]:
  """LOGICAL=AXIS+AXIS entries -> {logical: mesh axes}; an empty right side replicates."""
  parsed = {}
  for rule in rules:
    logical, equals, axes = rule.partition('=')
    if not equals:
      raise UserError(f'config.sharding_rules: {rule!r} is not LOGICAL=MESH_AXIS')
    parsed[logical] = tuple(axis for axis in axes.split('+') if axis)
    for axis in parsed[logical]:
      if axis not in AXES:
        raise UserError(f'config.sharding_rules: no mesh axis {axis!r}{nearest(axis, AXES)}')
  if 'batch' not in parsed:
    raise UserError("config.sharding_rules: no rule for axis 'batch' of the rows")
  return parsed


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def axes_of(entry: Any) -> tuple[str, ...]:
  """Mesh axes of one entry of a PartitionSpec, which has one axis by itself and None for none."""
  if entry is None:
    return ()
  return (entry,) if isinstance(entry, str) else tuple(entry)


def divides_parameters(mesh: Mesh) -> bool:
  """Whether the mesh has more than copies of the parameters: other axes than `data`."""
  return mesh.size > mesh.shape['data']


def undivided(placed: NamedSharding, axis: int) -> NamedSharding:
  """The sharding of an array of another size along `axis`, which is then not divided."""
  spec = list(placed.spec)
  spec[axis] = None
  return NamedSharding(placed.mesh, PartitionSpec(*spec))


def batch_sharding(mesh: Mesh, rules: Mapping[str, tuple[str, ...]]) -> NamedSharding:
  """Rows of a batch along the axes of the logical axis `batch`."""
  return NamedSharding(mesh, PartitionSpec(rules['batch']))


def host_parts(rows: NamedSharding) -> tuple[tuple[int, ...], int]:
  """(which equal parts of a batch this process's devices hold, in order; how many there are).

  Processes between which a row is divided (tensor parallelism over hosts) hold the same parts.
  """
  count = math.prod(rows.mesh.shape[axis] for axis in axes_of(rows.spec[0]))
  places = rows.addressable_devices_indices_map((count,)).values()
  return tuple(sorted({range(count)[place[0]].start for place in places})), count


def place_rows(batch: Mapping[str, np.ndarray], rows: NamedSharding) -> dict[str, jax.Array]:
  """The global batch of arrays [B, ...], of which each process gives its `host_parts`."""
  if rows.is_fully_addressable:
    return jax.device_put(dict(batch), rows)
  parts, count = host_parts(rows)

  def one(value: np.ndarray) -> jax.Array:
    size = len(value) // len(parts)

    def shard(index: tuple[slice, ...]) -> np.ndarray:
      at = parts.index((index[0].start or 0) // size) * size
      return value[at : at + size]

    return jax.make_array_from_callback((size * count, *value.shape[1:]), rows, shard)

  return {key: one(np.asarray(value)) for key, value in batch.items()}


def local_copy(tree: Any, mesh: Mesh) -> Any:
  """Global arrays, whole, on one device of this process; as they are where there is only one.

  Every process must call it.
  """
  if not any(device.process_index != jax.process_index() for device in mesh.devices.flat):
    return tree
  whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
  return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


def one_each(mesh: Mesh) -> NamedSharding:
  """One value of a vector on each device."""
  return NamedSharding(mesh, PartitionSpec(AXES))


@dataclasses.dataclass(frozen=True)
class Placement:
  """The mesh that a step is traced for, and its rules."""

  mesh: Mesh
  rules: Mapping[str, tuple[str, ...]]

  def spec(self, names: Sequence[str]) -> PartitionSpec:
    """Of an array whose first axes have these logical names; '' is an axis that stays whole."""
    return PartitionSpec(*(self.axes(name) or None for name in names))

  def axes(self, name: str) -> tuple[str, ...]:
    """Mesh axes that divide a logical axis, those of one device left out."""
    return tuple(axis for axis in self.rules[name] if self.mesh.shape[axis] > 1) if name else ()


# While a step over a mesh is traced; None elsewhere and under pmap.
_placement: contextvars.ContextVar[Placement | None] = contextvars.ContextVar('mesh', default=None)


@contextlib.contextmanager
def placed(mesh: Mesh, rules: Mapping[str, tuple[str, ...]]) -> Iterator[None]:
  """Context of tracing a step whose batch and parameters lie on `mesh`."""
  token = _placement.set(Placement(mesh, rules))
  try:
    yield
  finally:
    _placement.reset(token)


def platform() -> str:
  """Of the devices that a step is traced for: 'cpu', 'gpu', 'tpu'. They need not be here."""
  placement = _placement.get()
  if placement is None:
    return jax.default_backend()
  return placement.mesh.devices.flat[0].platform


def _dividing() -> Placement | None:
  """The placement, unless there is none or nothing is divided on its one device."""
  placement = _placement.get()
  return None if placement is None or placement.mesh.size == 1 else placement


def divided_alike(*names: str) -> bool:
  """Whether these logical axes lie along the same mesh axes."""
  placement = _placement.get()
  return placement is None or len({placement.axes(name) for name in names}) == 1


def keep_rows(x: jax.Array) -> jax.Array:
  """x [B, ...] with its rows where those of the batch are, and whole otherwise."""
  placement = _dividing()
  if placement is None:
    return x
  place = NamedSharding(placement.mesh, placement.spec(['batch']))
  return jax.lax.with_sharding_constraint(x, place)


def on_shards(
  function: Callable[..., Any],
  inputs: Sequence[Sequence[str]],
  output: Sequence[str],
  *,
  sums: bool = False,
) -> Callable[..., Any]:
  """The function, computed by each device on its part; devices with the same part repeat it.

  inputs: of each argument, an array or a tree of arrays, the logical names of its first axes;
  output: those of the result. With `sums` the function returns (sums, result), and the sums, of
  any tree, are added over the devices once, where a loop would add them at every turn; along mesh
  axes that divide no input the compiler then divides the work, which it cannot do with kernels.
  """
  placement = _dividing()
  if placement is None:
    return function
  specs = [placement.spec(names) for names in inputs]
  used = (axis for names in inputs for name in names for axis in placement.axes(name))
  axes = tuple(dict.fromkeys(used))
  if not axes:
    return function

  def local(*args: Any) -> Any:
    found = function(*args)
    return (jax.lax.psum(found[0], axes), found[1]) if sums else found

  out = placement.spec(output)
  return jax.shard_map(
    local,
    mesh=placement.mesh,
    in_specs=tuple(specs),
    out_specs=(PartitionSpec(), out) if sums else out,
    axis_names=set(axes if sums else AXES),
    check_vma=False,
  )


def lookup(table: jax.Array, names: tuple[str, str], ids: jax.Array, dtype: Any) -> jax.Array:
  """table[ids] as dtype: [N, D], logical axes `names`, at ids [B, L] -> [B, L, D].

  Where columns of the table lie along devices that divide rows, every device looks up its columns
  for the rows of all of these, and sends each its own; where entries are divided, each gives what
  it has. Left to itself, the compiler copies table or result to all devices.
  """
  placement = _dividing()
  if placement is None:
    return table[ids].astype(dtype)
  rows, entries, columns = (placement.axes(name) for name in ('batch', *names))
  if {*entries} & {*rows, *columns} or not {*columns} <= {*rows}:
    return keep_rows(table[ids].astype(dtype))

  def local(table: jax.Array, ids: jax.Array) -> jax.Array:
    if columns:
      ids = jax.lax.all_gather(ids, columns, tiled=True)
    if entries:
      ids = ids - jax.lax.axis_index(entries) * len(table)
      here = (ids >= 0) & (ids < len(table))
      found = jnp.where(here[..., None], table[jnp.where(here, ids, 0)], 0).astype(dtype)
      found = jax.lax.psum(found, entries)
    else:
      found = table[ids].astype(dtype)
    if columns:
      found = jax.lax.all_to_all(found, columns, split_axis=0, concat_axis=2, tiled=True)
    return found

  return on_shards(local, [names, ('batch',)], ('batch',))(table, ids)


def check_batch(mesh: Mesh, rules: Mapping[str, tuple[str, ...]], rows: int, key: str) -> None:
  """Raises UserError, naming `key`, if `rows` do not divide over the devices of a batch."""
  parts = math.prod(mesh.shape[axis] for axis in rules['batch'])
  if rows % parts:
    raise UserError(
      f'{key}: {rows} rows do not divide over {parts} devices; the next size that does is '
      f'{-(-rows // parts) * parts}'
    )


def parameter_shardings(boxed: Any, mesh: Mesh, rules: Mapping[str, tuple[str, ...]]) -> Any:
  """Tree of NamedSharding for abstract parameters boxed with their logical axes.

  Raises UserError for a logical axis without a rule and for a dimension that does not divide,
  naming the parameter.
  """

  def one(path, leaf) -> NamedSharding:
    name = path_name(path)
    used: set[str] = set()
    spec = []
    for size, logical in zip(leaf.value.shape, leaf.names, strict=True):
      if logical not in rules:
        raise UserError(
          f'config.sharding_rules: no rule for axis {logical!r} of {name}{nearest(logical, rules)}'
        )
      # A mesh axis can serve one dimension of an array only: the first that asks for it.
      axes = tuple(a for a in rules[logical] if mesh.shape[a] > 1 and a not in used)
      parts = math.prod(mesh.shape[a] for a in axes)
      if size % parts:
        raise UserError(
          f'config.mesh: axis {logical!r} of {name} has size {size}, which does not divide over '
          f'{parts} devices ({"+".join(axes)}); it does over {math.gcd(size, parts)}, and '
          f"'{logical}=' in config.sharding_rules leaves it whole"
        )
      used.update(axes)
      spec.append(axes or None)
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(
    one, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
  )
