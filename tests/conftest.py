"""What surrounds every test: the CPU, a compile cache that is kept, a data cache that is not.

There is no TensorFlow, whether it is installed or not, and no network.
"""

import importlib.machinery
import importlib.metadata
import os
import pathlib
import socket
import sys

# Set before anything imports jax; subprocesses inherit them.
os.environ['JAX_PLATFORMS'] = 'cpu'
_CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME', pathlib.Path.home() / '.cache'))
# Tests compile far more than they run: without optimisation that takes a fifth of the time.
_QUICK = ['--xla_backend_optimization_level=0', '--xla_llvm_disable_expensive_passes=true']
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  _QUICK.append('--xla_cpu_use_fusion_emitters=false')  # Later releases may end at its name.
os.environ['XLA_FLAGS'] = ' '.join([*_QUICK, os.environ.get('XLA_FLAGS', '')]).strip()
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE / 'flaxlm-tests' / 'xla'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')


class _WithoutTensorFlow(importlib.machinery.PathFinder):
  """Finds every module but TensorFlow, as if it were not installed."""

  @classmethod
  def find_spec(cls, name, path=None, target=None):
    return None if name.partition('.')[0] == 'tensorflow' else super().find_spec(name, path, target)


def _connect(self, address, connect=socket.socket.connect):
  if self.family != socket.AF_UNIX and address[0] not in ('127.0.0.1', '::1', 'localhost'):
    raise OSError(f'tests have no network, and one of them asks for {address}')
  return connect(self, address)


_finders = {importlib.machinery.PathFinder: _WithoutTensorFlow}
sys.meta_path[:] = [_finders.get(finder, finder) for finder in sys.meta_path]
socket.socket.connect = _connect

import hypothesis
import jax
import numpy as np
import pytest

# A machine that is busy is not a failure.
hypothesis.settings.register_profile('flaxlm', deadline=None)
hypothesis.settings.load_profile('flaxlm')

ROOT = pathlib.Path(__file__).parent.parent


def assert_same_tree(a, b):
  """The same structure and types, and the same numbers to the last bit."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope='session', autouse=True)
def flaxlm_cache(tmp_path_factory):
  """Tokenised corpora and trained tokenizers of this run, in a folder of its own."""
  folder = tmp_path_factory.mktemp('flaxlm_cache')
  before = os.environ.get('FLAXLM_CACHE')
  os.environ['FLAXLM_CACHE'] = str(folder)
  yield folder
  if before is None:
    del os.environ['FLAXLM_CACHE']
  else:
    os.environ['FLAXLM_CACHE'] = before


@pytest.fixture(scope='module', autouse=True)
def room_for_compiled_functions():
  """Each maps memory six times; at Linux' limit of 65,530 maps a process, XLA ends it."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_text().count('\n') > 20_000:
    jax.clear_caches()


@pytest.fixture(scope='session')
def data_folder():
  """The folder of real corpora that $FLAXLM_DATA names; without it the test is skipped."""
  folder = os.environ.get('FLAXLM_DATA')
  if not folder:
    pytest.skip('FLAXLM_DATA does not name a folder of real corpora')
  return pathlib.Path(folder)


@pytest.fixture(scope='session')
def root():
  """The checkout, where train.py and configs/ lie."""
  return ROOT


@pytest.fixture
def in_the_checkout(root, monkeypatch):
  """Paths such as configs/gpt2.py lead where they lead a user."""
  monkeypatch.chdir(root)
