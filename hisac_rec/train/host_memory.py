"""Keep the memory that tensors free, instead of handing it back after every step."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_KEPT = 32 << 20
"""Bytes: the most that glibc takes from its heap instead of asking the kernel each time."""


def keep_freed_memory() -> bool:
    """Let malloc keep freed blocks up to :data:`LARGEST_KEPT`, for steps on the CPU.

    A step makes and frees the same large tensors again and again. By default glibc maps each
    of them anew and the kernel clears every page: 10 % of a training step (HiSAC and mean
    pooling on MovieLens-1M batches, one core). The process holds its largest working set until
    it ends.

    Returns:
        Whether this C library took the settings; others are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # no glibc: musl, macOS
        return False
    taken = mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return bool(taken)
