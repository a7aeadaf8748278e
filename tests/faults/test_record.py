"""What a model has learned, told from the records of starts that were killed."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.faults.record import learned, lost_and_repeated, trained_steps


def write(folder: Path, name: str, steps: dict[int, list[int]], epoch: int = 0) -> None:
    lines = [json.dumps({"step": s, "epoch": epoch, "requests": r}) for s, r in steps.items()]
    (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_steps_after_the_checkpoint_are_struck_out(tmp_path: Path) -> None:
    """A line cut short by the kill is none; a start killed before its first step does nothing."""
    write(tmp_path, "100-0-11-start1", {1: [0, 1], 2: [2], 3: [3]})
    write(tmp_path, "101-1-12-start1", {1: [4], 2: [5]})
    (tmp_path / "101-1-12-start1.jsonl").open("a").write('{"step": 3, "epo')
    write(tmp_path, "200-0-21-start2", {})  # killed before its first step
    write(tmp_path, "300-0-31-start3", {2: [2], 3: [3]})  # from the checkpoint of step 1
    write(tmp_path, "301-1-32-start3", {2: [5], 3: [6]})
    assert learned(tmp_path) == {0: dict.fromkeys(range(7), 1)}
    assert lost_and_repeated(tmp_path, 7, 1) == (0, 0)
    assert trained_steps(tmp_path) == 5


def test_what_is_lost_and_repeated_is_counted(tmp_path: Path) -> None:
    write(tmp_path, "100-0-11-start1", {1: [0, 1], 2: [2]})
    write(tmp_path, "200-0-21-start2", {3: [2, 4]})  # goes on after step 2, but reads 2 again
    assert lost_and_repeated(tmp_path, 5, 1) == (1, 1)
    assert lost_and_repeated(tmp_path, 5, 2) == (6, 1)  # nothing of a second epoch


def test_ranks_that_become_fewer(tmp_path: Path) -> None:
    """What the second rank had trained before the checkpoint stays in the history."""
    write(tmp_path, "100-0-11-start1", {1: [0], 2: [2]})
    write(tmp_path, "101-1-12-start1", {1: [1], 2: [3]})
    write(tmp_path, "200-0-21-start2", {2: [3, 2]})
    assert lost_and_repeated(tmp_path, 4, 1) == (0, 0)
