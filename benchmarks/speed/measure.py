"""Timing on machines that are not quiet: rivals take turns, ratios are taken turn by turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

TURNS = 9


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Args:
        name: what was measured; the same from page to page, so that pages can be compared.
        value: median.
        low: first quartile of the turns.
        high: third quartile.
        unit: "x" for how many times, "%" for a share of one.
        goal: what was asked for, in the unit, and whether more or less is better: ">= 0.4".
    """

    name: str
    value: float
    low: float
    high: float
    unit: str = "x"
    goal: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None without one."""
        if not self.goal:
            return None
        sense, wanted = self.goal.split()
        return self.value >= float(wanted) if sense == ">=" else self.value <= float(wanted)

    def as_dict(self) -> dict[str, Any]:
        """For the page's JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Topic:
    """What a file of this folder found: figures, plots' data and words for the page.

    Args:
        title: heading on the page.
        text: what was run, in a few lines of Markdown.
        figures: the numbers.
        curves: plot title -> series name -> (x, y) points.
    """

    title: str
    text: str
    figures: list[Figure]
    curves: Mapping[str, Mapping[str, list[tuple[float, float]]]]


def take_turns(rivals: Mapping[str, Callable[[], object]], turns: int = TURNS) -> Turns:
    """Run all rivals once for warmth, then in turn; seconds of each turn."""
    for run in rivals.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(turns):
        for name, run in rivals.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return Turns(seconds)


@dataclass(frozen=True)
class Turns:
    """Seconds of every rival in every turn."""

    seconds: Mapping[str, list[float]]

    def ratio(
        self, name: str, slower: str, faster: str, goal: str = "", factor: float = 1.0
    ) -> Figure:
        """How many times longer ``slower`` takes, times ``factor``."""
        pairs = zip(self.seconds[slower], self.seconds[faster], strict=True)
        return figure(name, [factor * one / other for one, other in pairs], goal=goal)

    def share(
        self, name: str, part: str, whole: str, goal: str = "", factor: float = 1.0
    ) -> Figure:
        """``factor`` times the seconds of ``part`` over those of ``whole``, as a share of one."""
        pairs = zip(self.seconds[part], self.seconds[whole], strict=True)
        return figure(name, [factor * one / other for one, other in pairs], unit="%", goal=goal)

    def median(self, name: str) -> float:
        """Median seconds."""
        return statistics.median(self.seconds[name])


def figure(name: str, turns: list[float], unit: str = "x", goal: str = "") -> Figure:
    """Median and quartiles over turns."""
    if len(turns) == 1:
        return Figure(name, turns[0], turns[0], turns[0], unit, goal)
    low, middle, high = statistics.quantiles(turns, n=4, method="inclusive")
    return Figure(name, middle, low, high, unit, goal)


SGEMM = 2048


def sgemm() -> Callable[[], object]:
    """The machine's own matrix product, 2048^3 in float32."""
    left, right, out = (torch.randn(SGEMM, SGEMM) for _ in range(3))
    return lambda: torch.mm(left, right, out=out)


SGEMM_OPERATIONS = 2 * SGEMM**3
