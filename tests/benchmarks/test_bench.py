"""What ``make bench`` writes, from figures that need no measuring."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks import bench
from benchmarks.speed import measure
from benchmarks.speed.measure import Figure, Topic, figure, take_turns


def test_goals_are_read_both_ways() -> None:
    assert Figure("a", 8.0, 7, 9, goal=">= 8").met is True
    assert Figure("a", 7.9, 7, 9, goal=">= 8").met is False
    assert Figure("a", 0.04, 0, 1, "%", "<= 0.05").met is True
    assert Figure("a", 1.0, 0, 1).met is None


def test_ratios_are_taken_turn_by_turn() -> None:
    """A machine that slows down between turns slows both rivals of a turn."""
    turns = measure.Turns({"slow": [2.0, 20.0, 2.0], "fast": [1.0, 10.0, 1.0]})
    assert turns.ratio("r", "slow", "fast").value == 2.0
    share = turns.share("s", "fast", "slow", factor=0.5)
    assert (share.value, share.low, share.high, share.unit) == (0.25, 0.25, 0.25, "%")


def test_rivals_run_in_turn_after_a_warm_up() -> None:
    ran: list[str] = []
    turns = take_turns({"a": lambda: ran.append("a"), "b": lambda: time.sleep(0.001)}, turns=2)
    assert ran == ["a"] * 3
    assert turns.median("b") >= 0.001


def test_a_single_turn_has_no_spread() -> None:
    assert figure("f", [3.0]) == Figure("f", 3.0, 3.0, 3.0)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bench, "PAGE", tmp_path / "speed.md")
    monkeypatch.setattr(bench, "RECORD", tmp_path / "speed")
    return tmp_path / "speed.md"


def run(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """``make bench`` for one topic whose measuring is known."""
    found = Topic(
        "Soft routing",
        "Words.",
        [Figure("share of sgemm", value, value - 0.01, value + 0.01, "%", ">= 0.4")],
        {"read, us": {"hisac": [(100, 1.0), (1_000, 1.1)], "din": [(100, 3.0), (1_000, 30.0)]}},
    )
    monkeypatch.setattr("benchmarks.speed.routing.measure", lambda: found)
    monkeypatch.setattr("sys.argv", ["bench", "routing"])
    bench.main()


def test_the_page_compares_with_the_one_before(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, 0.38)
    assert "| 38 % (37 % to 39 %) | at least 40 % | **missed** |  |" in page.read_text()
    run(monkeypatch, 0.5)
    text = page.read_text()
    assert "| share of sgemm | 50 % (49 % to 51 %) | at least 40 % | met | 38 % |" in text
    assert "![read, us](speed/routing-0.svg)" in text
    drawn = (page.parent / "speed" / "routing-0.svg").read_text()
    assert "hisac" in drawn
    record = json.loads((page.parent / "speed" / "figures.json").read_text())
    assert list(record) == ["routing"]
