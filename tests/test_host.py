"""The allocator keeps freed memory: the kernel is not asked again for pages that a thread freed."""

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
