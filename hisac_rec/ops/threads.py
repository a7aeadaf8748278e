"""Compiled loops of a CPU side by side.

Not for matrix products: torch's own threads go on spinning for milliseconds after an operator of
theirs, on the cores that ours would run on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def in_threads(work: Callable[[T], None], parts: Iterable[T]) -> None:
    """Run ``work`` on every part, side by side where it is compiled; some 25 microseconds."""
    parts = list(parts)
    others = [_threads().submit(work, part) for part in parts[1:]]
    try:
        if parts:
            work(parts[0])  # here: one thread less to wake
    finally:
        wait(others)
    for other in others:
        other.result()


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
