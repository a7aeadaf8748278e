"""The log of the preparation benchmark and the limits under which it is prepared."""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb
import pytest
from shop import digest

from benchmarks.prepare import DEFINITION
from benchmarks.scale.limits import folder_bytes, run_limited
from benchmarks.scale.log import write_log
from hisac_rec.config import load_config
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare


def test_the_log_is_the_same_for_the_same_seed_and_prepares(tmp_path: Path) -> None:
    size = {"events": 20_000, "users": 200, "items": 500}
    write_log(tmp_path / "a", **size, seed=1, threads=1)
    write_log(tmp_path / "b", **size, seed=1, threads=2)
    write_log(tmp_path / "c", **size, seed=2, threads=1)
    assert digest(tmp_path / "a", "**/*.*") == digest(tmp_path / "b", "**/*.*")
    assert digest(tmp_path / "a", "**/*.*") != digest(tmp_path / "c", "**/*.*")
    most = duckdb.execute(
        f"SELECT count(*) FROM '{tmp_path}/a/events/*.parquet' GROUP BY item_id ORDER BY 1 DESC"
    ).fetchall()
    assert most[0][0] > 1000 > 40 > most[len(most) // 2][0]
    definition = load_config(DatasetDefinition, DEFINITION)
    data = prepare(definition, tmp_path / "out", raw=tmp_path / "a")
    counts = data.manifest.splits.values()
    assert 19_700 < sum(split.candidates for split in counts) <= 20_000


def test_a_command_beyond_its_memory_is_killed(tmp_path: Path) -> None:
    grow = [sys.executable, "-c", "x = b'x' * (300 << 20); print('grown')"]
    log = tmp_path / "log"
    roomy = run_limited(grow, 1 << 30, 1, lambda: folder_bytes(tmp_path), log)
    assert roomy.code == 0
    assert log.read_text() == "grown\n"
    if roomy.limited_by.startswith("nothing"):
        pytest.skip("control groups cannot be made here")
    assert roomy.peak_bytes > 300 << 20
    tight = run_limited(grow, 100 << 20, 1, lambda: 0, log)
    assert tight.code == -9
