"""Loops over whole numbers on a CPU, compiled by Numba.

torch has no operator for them: counting into groups, choosing among siblings, look-ups in
chains. What a dozen small torch operators do in as many passes is one pass here. The torch form
stays for every other device and is what the loop is tested against.

A compiled loop may call those of its own file alone: what Numba keeps of a loop is dropped when
the loop's file changes, and not when the file of another does (``tests/ops/test_compiled.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

Ints: TypeAlias = NDArray[np.int64]
Int16s: TypeAlias = NDArray[np.int16]
Floats: TypeAlias = NDArray[Any]
"""Of either width: a loop is compiled for each that it is called with."""

P = ParamSpec("P")
T = TypeVar("T")


def compiled(loop: Callable[P, T]) -> Callable[P, T]:
    """Compile ``loop`` when it is first called, once for a machine where files can be kept.

    Other threads run while it does. Numba keeps what it compiled beside the source or, where
    that cannot be written, in the user's cache folder; where it finds neither, as in a read-only
    container, every process compiles for itself, a second or two.
    """
    return _compile(loop, set())


def compiled_in_any_order(loop: Callable[P, T]) -> Callable[P, T]:
    """:func:`compiled`, and sums may be taken in any order: several numbers are added at once,
    and results differ from those of a plain loop by rounding.
    """
    return _compile(loop, {"reassoc", "contract"})


def _compile(loop: Callable[P, T], relaxed: set[str]) -> Callable[P, T]:
    """``relaxed``: LLVM's names for what it need not keep of the order of floats' operations."""
    try:
        return cast("Callable[P, T]", njit(loop, cache=True, nogil=True, fastmath=relaxed))
    except RuntimeError:  # no place for a cache
        return cast("Callable[P, T]", njit(loop, nogil=True, fastmath=relaxed))


def in_threads(work: Callable[[T], None], parts: Iterable[T]) -> None:
    """Run ``work`` on every part, side by side where it is compiled; some 50 microseconds."""
    parts = list(parts)
    if len(parts) > 1:
        for _ in _threads().map(work, parts):
            pass
    elif parts:
        work(parts[0])


def even_runs(ends: Tensor, least: int) -> list[slice]:
    """Cut items in runs of about equally much work, one for each thread that is worth its start.

    Args:
        ends: [n+1] int64 work before each item.
        least: work from which a thread more is worth its start.
    """
    work = int(ends[-1])
    runs = min(torch.get_num_threads(), max(1, work // least))
    goals = torch.arange(1, runs) * work // runs
    cuts = [0, *torch.searchsorted(ends, goals).tolist(), len(ends) - 1]
    return [slice(first, last) for first, last in pairwise(cuts) if first < last]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="loops")


# A fork copies the pool and none of its threads: a child that used it would wait for ever.
os.register_at_fork(after_in_child=_threads.cache_clear)
