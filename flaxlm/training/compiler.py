"""Compiler options of the steps and of the initialisation, by backend."""

import functools
import pathlib

import jax
from jax.sharding import Mesh

# XLA's CPU compiler hands products to YNNPACK by default. At the sizes of small models that is two
# to three times slower than its own Eigen kernels on x86 with AVX2, and a tenth faster with AVX-512
# (docs/performance.md).
_EIGEN = (('xla_cpu_experimental_ynn_fusion_type', ''),)
# On TPUs, products of gathered matrices otherwise become loops that pass parts around; the compiler
# itself takes them for twice the cycles.
_TPU_STEP = (('xla_jf_spmd_threshold_for_windowed_einsum_mib', 1_000_000),)
# What runs once is not worth optimising: the random numbers of a small model compiled for 10 s.
_CPU_ONCE = (
  ('xla_backend_optimization_level', 0),
  ('xla_llvm_disable_expensive_passes', True),
)


def step_options(mesh: Mesh) -> dict[str, str | int | bool]:
  """Options for `jax.jit(compiler_options=...)` of what runs on the mesh at every step."""
  if mesh.devices.flat[0].platform == 'tpu':
    return dict(_TPU_STEP)
  return {} if _has_avx512() else _accepted(_EIGEN)


def once_options() -> dict[str, str | int | bool]:
  """Options for what runs once, such as the initialisation."""
  return _accepted(_CPU_ONCE)


@functools.cache
def _has_avx512() -> bool:
  """Whether the processors are known to have AVX-512; Linux tells."""
  try:
    return 'avx512f' in pathlib.Path('/proc/cpuinfo').read_text().split()
  except OSError:
    return False


@functools.cache
def _accepted(options: tuple[tuple[str, str | int | bool], ...]) -> dict[str, str | int | bool]:
  """The options on a CPU, if this release knows them; else {}."""
  if jax.default_backend() != 'cpu':
    return {}
  try:
    jax.jit(lambda x: x + 1, compiler_options=dict(options))(0.0)
  except jax.errors.JaxRuntimeError:  # a release that no longer knows one of them
    return {}
  return dict(options)
