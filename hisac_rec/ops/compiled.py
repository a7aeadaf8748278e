"""Loops on a CPU, compiled by Numba.

torch has no operator for them: counting into groups, choosing among siblings, look-ups in chains,
products of a few numbers for each of many. What a dozen small torch operators do in as many passes
is one pass here. The torch form stays for every other device and is what the loop is tested
against.

A compiled loop may call those of its own file alone: what Numba keeps of a loop is dropped when
the loop's file changes, and not when the file of another does (``tests/ops/test_compiled.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

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
