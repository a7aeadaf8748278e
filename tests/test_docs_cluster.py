"""The commands of docs/cluster.md that need no cluster, in order, as a reader would type them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each block of commands printed."""
    folder = tmp_path_factory.mktemp("cluster")
    for name in ("launch", ".torchxconfig"):
        (folder / name).symlink_to(ROOT / name)
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = os.environ | {"PATH": os.pathsep.join(path), "COLUMNS": "200"}
    outputs = []
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL):
        done = subprocess.run(
            ["bash", "-euc", block], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, block + done.stderr[-3000:]
        outputs.append(done.stdout)
    return outputs


def test_the_plan_is_what_the_page_says(printed: list[str]) -> None:
    assert len(printed) == 4
    plan = printed[2]
    assert "16 hosts x 8 cuda, 64 requests per rank" in plan
    for line in (
        r"requests per rank +64 +511",
        r"HBM, fullest rank +5\.2 GiB +41\.6 GiB",
        r"ms a step, slowest rank +14 +111",
        r"HBM .* 5\.2 GiB .* 1\.00 +62\.8 GiB",
    ):
        assert re.search(line, plan), plan
    sent = re.findall(r"forward: rows sent +(\S+)|gradients sent +(\S+)", plan)
    assert sum(float(rows or gradients) for rows, gradients in sent) == pytest.approx(13.4, abs=0.1)


def test_the_job_has_a_group_for_each_host(printed: list[str]) -> None:
    script = printed[3].split("=== SCHEDULER REQUEST ===")[1]
    assert script.count("#SBATCH --job-name=train-") == 16
    assert script.count("--nproc-per-node 8 ") == 16
    assert script.count("--planner 128xh100 ") == 16


def test_the_arithmetic_of_the_step() -> None:
    tokens = 10_000 + 16 * 10
    assert f"{tokens:,} tokens" in PAGE
    assert 128 * 64 * tokens == pytest.approx(83e6, rel=0.01)
    assert f"{128 * 64 * 10:,}" in PAGE
