"""The example of docs/planning.md, run as it stands: what is printed is what the page shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hisac_rec.cli.app import app
from hisac_rec.planning.plan_io import load_plan
from hisac_rec.planning.table import rank_bytes
from hisac_rec.planning.topology import usable_bytes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "planning.md"


def lines(text: str) -> list[str]:
    """Without what a terminal fills up with."""
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_a_billion_items_on_128_gpus_as_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = PAGE.read_text().partition("## Sizing a cluster before it exists")[2]
    commands, shown = re.findall(r"```\n(.*?)```", section, flags=re.DOTALL)[:2]
    monkeypatch.chdir(tmp_path)
    steps = commands.replace("\\\n", " ").replace("&&", "\n").splitlines()
    *before, plan = [shlex.split(step) for step in steps if step.strip()]
    for step in [*before, [*plan, "--out", "plan.json"]]:
        assert step[0] == "hisac-rec"
        done = CliRunner().invoke(app, step[1:])
        assert done.exit_code == 0, done.output
    assert lines(done.stdout) == lines(shown)
    found = load_plan(Path("plan.json"))
    assert found.world_size == 128
    for memory in ("hbm", "ddr"):
        for rank, load in enumerate(rank_bytes(found, memory)):
            assert load <= usable_bytes(found.planner, rank, found.footprint)[memory]
