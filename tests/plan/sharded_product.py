"""Run by test_collectives.py on 8 simulated devices: prints what a sharded product exchanges."""

import json
import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxlm.plan import estimate, hlo

mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ('a', 'b'))
place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))


def product(left, right, out):
  """[64, 128] @ [128, 32] float32."""
  x = jax.ShapeDtypeStruct((64, 128), np.float32, sharding=place(*left))
  w = jax.ShapeDtypeStruct((128, 32), np.float32, sharding=place(*right))
  compiled = jax.jit(lambda x, w: x @ w, out_shardings=place(*out)).lower(x, w).compile()
  module = hlo.parse(compiled.as_text())
  found = {c.kind: (c.times, c.bytes) for c in estimate.gather(module)}
  return {'flops': estimate.flops(module), 'collectives': found}


found = {
  'rows': product(('a',), (), ('a',)),
  'contracted': product((None, 'b'), ('b',), ()),
  'gathered': product(('b',), ('b',), ('b',)),
}
json.dump(found, sys.stdout)
