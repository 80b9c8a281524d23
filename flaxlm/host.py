"""Settings of the process that runs a command."""

import ctypes

_M_TOP_PAD, _M_MMAP_THRESHOLD = -2, -3  # malloc.h of glibc


def keep_freed_memory() -> bool:
  """Lets the C allocator keep what was freed; returns whether it could be told.

  A step on CPUs allocates and frees the same megabytes in several threads. By default glibc gives
  them back to the kernel each time, and every step pays again for page faults and zeroed pages
  (docs/performance.md). Nothing happens with another allocator.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # not glibc; no libc by that name
    return False
  # The largest threshold that glibc takes, and the size of one heap of a thread.
  return bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20) and mallopt(_M_TOP_PAD, 64 << 20))
