"""The allocator: freed memory is kept, and large blocks are of huge pages."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest

ALLOCATE = """
import ctypes, resource, threading
from flaxlm import host

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def run(times):
  def work():
    for _ in range(times):
      # Together more than twice the largest block: glibc raises its own limit to that much.
      blocks = [libc.malloc(8 << 20) for _ in range(5)]
      for block in blocks:
        ctypes.memset(block, 1, 64 << 10)
      for block in blocks:
        libc.free(block)
  before = faults()
  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  return faults() - before

before = run(200)
told = host.keep_freed_memory()
print(told, before, run(200))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc is told')
def test_freed_memory_is_not_faulted_in_again():
  done = subprocess.run(
    [sys.executable, '-c', ALLOCATE], capture_output=True, text=True, check=True
  )  # fmt: skip
  told, before, after = done.stdout.split()
  assert told == 'True'
  assert int(after) < int(before) / 4


def test_another_libc_is_left_alone(monkeypatch):
  from flaxlm import host

  monkeypatch.setattr(host.ctypes, 'CDLL', lambda name: object())
  assert host.keep_freed_memory() is False


OTHER = 'glibc.malloc.arena_max=2'
BLOCK = """
import ctypes, os, pathlib, resource, sys
sys.path.insert(0, {root!r})
from flaxlm import host

with open('starts', 'a') as file:
  file.write('a start ')
host._POLICY = pathlib.Path('policy')
host.use_huge_pages()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
place = ctypes.c_void_p(libc.malloc(256 << 20))
before = faults()
ctypes.memset(place, 1, 256 << 20)
print(faults() - before, os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], sys.stdin.read())
"""


def block(folder, policy, tunables):
  """(page faults for 256 MiB, the rest of what the program prints, how often it starts)."""
  root = str(pathlib.Path(__file__).parent.parent)
  (folder / 'block.py').write_text(BLOCK.format(root=root))
  (folder / 'policy').write_text(policy)
  done = subprocess.run(
    [sys.executable, 'block.py', 'a b', '*'], input='typed', capture_output=True, text=True,
    check=True, cwd=folder, env={**os.environ, 'GLIBC_TUNABLES': tunables},
  )  # fmt: skip
  faults, rest = done.stdout.split(' ', 1)
  return int(faults), rest.strip(), (folder / 'starts').read_text().count('a start')


def test_a_program_starts_again_with_huge_pages(tmp_path):
  faults, rest, starts = block(tmp_path, 'always [madvise] never', OTHER)
  assert (rest, starts) == (f"{OTHER}:glibc.malloc.hugetlb=1 ['a b', '*'] typed", 2)
  libc, version = platform.libc_ver()
  can = libc == 'glibc' and [int(part) for part in version.split('.')] >= [2, 35]
  kernel = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
  if can and kernel.exists() and '[never]' not in kernel.read_text():
    assert faults < 10_000  # of 65,536 small pages


@pytest.mark.parametrize(
  ('policy', 'tunables'),
  [('[always] madvise never', OTHER), ('always madvise [never]', OTHER),
   ('always [madvise] never', 'glibc.malloc.hugetlb=0')],
)  # fmt: skip
def test_a_program_goes_on_where_there_is_nothing_to_ask_for(tmp_path, policy, tunables):
  _, rest, starts = block(tmp_path, policy, tunables)
  assert (rest, starts) == (f"{tunables} ['a b', '*'] typed", 1)
