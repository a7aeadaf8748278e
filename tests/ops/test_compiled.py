"""Compiled loops are safe to keep on disk."""

from __future__ import annotations

import importlib
import multiprocessing
import pkgutil
from typing import Any

import numba
import pytest

import hisac_rec
from hisac_rec.ops import compiled as module
from hisac_rec.ops.compiled import compiled
from hisac_rec.ops.threads import in_threads


def double(number: int) -> int:
    return 2 * number


def test_a_loop_calls_those_of_its_own_file_alone() -> None:
    """Numba would go on with what it kept of the caller when the file of the called changes."""
    kind = type(compiled(double))
    callers = 0
    for found in pkgutil.walk_packages(hisac_rec.__path__, "hisac_rec."):
        if not found.name.endswith("_cpu"):
            continue
        for name, loop in vars(importlib.import_module(found.name)).items():
            if not isinstance(loop, kind) or loop.py_func.__module__ != found.name:
                continue
            callers += 1
            for used in loop.py_func.__code__.co_names:
                called = loop.py_func.__globals__.get(used)
                if isinstance(called, kind):
                    assert called.py_func.__module__ == found.name, f"{found.name}.{name}: {used}"
    assert callers > 5


def test_without_a_place_for_a_cache_a_loop_is_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def njit(loop: Any, **how: Any) -> Any:
        if how.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")  # Numba's words
        return numba.njit(loop, **how)

    monkeypatch.setattr(module, "njit", njit)
    assert compiled(double)(21) == 42


def test_a_forked_child_has_threads_of_its_own() -> None:
    """Loader processes are forks; those of the parent's pool are not in them."""
    done: list[int] = []
    in_threads(done.append, range(5))
    assert sorted(done) == [0, 1, 2, 3, 4]
    pool = multiprocessing.get_context("fork").Process(target=in_threads, args=(abs, range(5)))
    pool.start()
    pool.join(30)
    assert pool.exitcode == 0


def test_an_error_in_a_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda part: 1 // part, [1, 0])
