"""Compiler options of the steps."""

import functools

import jax

# XLA's CPU compiler hands products to YNNPACK by default; on x86 with AVX2 that is two to three
# times slower than its own Eigen kernels at the sizes of small models (docs/performance.md).
_CPU = {'xla_cpu_experimental_ynn_fusion_type': ''}


@functools.cache
def options() -> dict[str, str]:
  """Options for `jax.jit(compiler_options=...)` on the default backend; {} where none help."""
  if jax.default_backend() != 'cpu':
    return {}
  try:
    jax.jit(lambda x: x + 1, compiler_options=_CPU)(0.0)
  except jax.errors.JaxRuntimeError:  # a release that no longer knows the option
    return {}
  return _CPU
