"""Settings of the process that a program runs in: how the C allocator gets and keeps memory.

A step on CPUs allocates and frees the same megabytes in several threads. By default glibc gives
them back to the kernel each time, and every step pays again for page faults and zeroed pages
(docs/performance.md). Nothing here changes another allocator.
"""

import contextlib
import ctypes
import os
import pathlib
import sys

_M_TOP_PAD, _M_MMAP_THRESHOLD = -2, -3  # malloc.h of glibc
_TUNABLES, _HUGE = 'GLIBC_TUNABLES', 'glibc.malloc.hugetlb'
_POLICY = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def prepare() -> None:
  """What a program does first: the allocator is told to use huge pages and to keep small blocks."""
  use_huge_pages()
  keep_freed_memory()


def use_huge_pages() -> None:
  """Starts the program again, as the same process, with an allocator that asks for huge pages.

  Large blocks, which glibc always gives back, then cost a page fault for 2 MiB instead of 4 KiB.
  glibc reads this setting as a program starts, and no later. Nothing happens where the kernel takes
  huge pages unasked or never, where the user has set glibc.malloc.hugetlb, and under a
  debugger or profiler.
  """
  tunables = os.environ.get(_TUNABLES, '')
  watched = sys.gettrace() is not None or sys.getprofile() is not None
  if not _kernel_waits_to_be_asked() or _HUGE in tunables or watched or not sys.executable:
    return
  wanted = ':'.join(filter(None, [tunables, f'{_HUGE}=1']))
  command = [sys.executable, *sys.orig_argv[1:]]
  with contextlib.suppress(OSError):
    os.execve(sys.executable, command, {**os.environ, _TUNABLES: wanted})


def _kernel_waits_to_be_asked() -> bool:
  try:
    return '[madvise]' in _POLICY.read_text()
  except OSError:  # another system than Linux, or a kernel without them
    return False


def keep_freed_memory() -> bool:
  """Lets the C allocator keep freed blocks up to 32 MiB; returns whether it could be told."""
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # not glibc; no libc by that name
    return False
  # The largest threshold that glibc takes, and the size of one heap of a thread.
  return bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20) and mallopt(_M_TOP_PAD, 64 << 20))
