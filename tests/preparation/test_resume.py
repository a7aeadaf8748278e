"""A preparation that is cut off goes on where it stopped and writes the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from shop import SHOP, define, digest, shop_log

from hisac_rec.config import load_config
from hisac_rec.errors import UserError
from hisac_rec.preparation import prepare as preparing
from hisac_rec.preparation import rawlog
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare
from hisac_rec.preparation.work import OutOfResourceError, WorkFolder, identity, record_path
from hisac_rec.shipped import find_config

CHUNKS = ["synthetic.users=3000", "synthetic.length_median=60", "synthetic.length_min=20"]


def work_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.preparing")


def begun(out: Path) -> list[str]:
    """Titles of the stages that a cut-off run has ended, or saved a part of."""
    path = work_of(out) / "stages.json"
    return [stage["title"] for stage in json.loads(path.read_text())] if path.is_file() else []


def start(*words: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hisac_rec", "prepare", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def killed_when(ready: Callable[[], bool], *words: str | Path) -> bool:
    """Start the command, SIGKILL it as soon as ``ready``; False where it ended before."""
    with start(*words) as process:
        while not ready():
            if process.poll() is not None:
                assert process.returncode == 0, process.communicate()[1]
                return False
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return process.returncode == -signal.SIGKILL


def finished(*words: str | Path) -> str:
    with start(*words) as process:
        said = process.communicate()[1]
    assert process.returncode == 0, said
    return said


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Path, Path]:
    """A definition file and its raw folder."""
    path = tmp_path / "shop.toml"
    path.write_text(tomli_w.dumps(SHOP))
    return path, shop_log(tmp_path / "raw", users=60)


def test_killed_in_sql_and_started_again(tmp_path: Path, shop: tuple[Path, Path]) -> None:
    toml, raw = shop
    whole = prepare(load_config(DatasetDefinition, toml), tmp_path / "whole", raw=raw)
    out = tmp_path / "out"
    command = (toml, "--raw", raw, "--out", out)
    assert killed_when(lambda: "ids of items" in begun(out), *command)
    done = begun(out)
    assert not out.exists()
    assert "write users" not in done
    said = finished(*command)
    assert "goes on where it stopped" in said
    assert digest(out, "**/*.*") == digest(whole.root, "**/*.*")
    record = json.loads(record_path(out).read_text())
    assert record["starts"] == 2
    assert [s["title"] for s in record["stages"]][: len(done)] == done
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["out", "out.prepare.json", "raw", "shop.toml", "whole", "whole.prepare.json"]


def test_killed_between_users(tmp_path: Path) -> None:
    definition = load_config(DatasetDefinition, find_config("datasets", "synthetic"), CHUNKS)
    whole = prepare(definition, tmp_path / "whole")
    out = tmp_path / "out"
    command = ("synthetic", "--out", out, *(w for o in CHUNKS for w in ("--set", o)))
    assert killed_when((work_of(out) / "users.npz").is_file, *command)
    assert not out.exists()
    assert list((work_of(out) / "new" / "train").iterdir())
    finished(*command)
    assert digest(out, "**/*.*") == digest(whole.root, "**/*.*")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_any_moment(tmp_path: Path, shop: tuple[Path, Path], seed: int) -> None:
    """Kill again and again at random moments; each start does a little more."""
    toml, _ = shop
    raw = shop_log(tmp_path / "more", users=3000)
    whole = prepare(load_config(DatasetDefinition, toml), tmp_path / "whole", raw=raw)
    stages = json.loads(record_path(whole.root).read_text())["stages"]
    seconds = sum(stage["seconds"] for stage in stages)
    out = tmp_path / "out"
    command = (toml, "--raw", raw, "--out", out)
    rng = random.Random(seed)
    kills = 0
    for start_number in range(12):
        at: list[float] = []
        patience = rng.uniform(0.2, 1) * seconds * (1 + start_number / 4)

        def ready(at: list[float] = at, patience: float = patience) -> bool:
            if not at and work_of(out).exists():
                at.append(time.monotonic() + patience)
            return bool(at) and time.monotonic() > at[0]

        if not killed_when(ready, *command):
            break
        kills += 1
        if out.exists():  # killed while it cleared up
            break
    if not out.exists() or work_of(out).exists():
        prepare(load_config(DatasetDefinition, toml), out, raw=raw, force=True)
    assert kills > 0
    assert not list(tmp_path.glob(".*"))
    assert digest(out, "**/*.*") == digest(whole.root, "**/*.*")


class CutOffError(Exception):
    """Stands for a loss of power between two stages."""


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the next preparation end without warning when it reaches a function of its module."""

    def arrange(name: str) -> None:
        def fail(*_: Any) -> None:
            monkeypatch.undo()
            raise CutOffError

        monkeypatch.setattr(preparing, name, fail)

    return arrange


@pytest.mark.parametrize("at", ["write_splits", "_write_items", "validate_prepared"])
def test_stages_that_were_done_are_not_done_again(
    tmp_path: Path, cut_off: Callable[[str], None], at: str
) -> None:
    raw, out = shop_log(tmp_path / "raw"), tmp_path / "out"
    whole = prepare(define(), tmp_path / "whole", raw=raw)
    cut_off(at)
    with pytest.raises(CutOffError):
        prepare(define(), out, raw=raw)
    then = json.loads((work_of(out) / "stages.json").read_text())
    prepare(define(), out, raw=raw)
    now = json.loads(record_path(out).read_text())["stages"]
    redone = {"write items": at == "_write_items", "check": at == "validate_prepared"}
    redone["write vocabularies"] = at == "_write_vocabularies"
    for before, after in zip(then, now, strict=False):
        assert before == after or redone.get(before["title"]), before["title"]
    assert digest(out, "**/*.*") == digest(whole.root, "**/*.*")


def test_what_it_is_made_from_must_agree(
    tmp_path: Path, cut_off: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    raw, out = shop_log(tmp_path / "raw"), tmp_path / "out"

    def cut() -> None:
        cut_off("validate_prepared")
        with pytest.raises(CutOffError):
            prepare(define(), out, raw=raw)
        caplog.clear()

    cut()
    prepare(define("history.min_events=2"), out, raw=raw)
    assert "starts afresh: another definition than at the last start" in caplog.text
    same = prepare(define("history.min_events=2"), tmp_path / "same", raw=raw)
    assert digest(out, "**/*.*") == digest(same.root, "**/*.*")

    out = tmp_path / "more"
    cut()
    (raw / "goods.csv").write_text((raw / "goods.csv").read_text().replace("middle", "second"))
    prepare(define(), out, raw=raw)
    assert "starts afresh: raw files changed since the last start: goods.csv" in caplog.text
    assert "second" in (out / "vocab" / "shelf.parquet").read_bytes().decode("latin-1")

    out = tmp_path / "thrown"
    cut()
    prepare(define(), out, raw=raw, fresh=True)
    assert "starts afresh: --fresh" in caplog.text


def test_memory_that_runs_out_keeps_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, out = shop_log(tmp_path / "raw"), tmp_path / "out"
    events = SHOP["source"]["events"] + " QUALIFY count(*) OVER (ORDER BY repeat('x', 100000)) > 0"
    with pytest.raises(OutOfResourceError, match="memory or disk ran out; give more with"):
        prepare(define(f"source.events={events}"), out, raw=raw, memory_limit="20MB", threads=1)
    assert work_of(out).is_dir()
    with pytest.raises(UserError, match="expected an amount"):
        prepare(define(f"source.events={events}"), out, raw=raw, memory_limit="much")
    assert not work_of(out).exists()


def test_killed_while_it_cleared_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out = shop_log(tmp_path / "raw"), tmp_path / "out"

    def fail(work: WorkFolder, *_: Any) -> None:
        monkeypatch.undo()
        os.close(work._lock)  # as the system does for a process that ends
        raise CutOffError

    monkeypatch.setattr(WorkFolder, "__exit__", fail)
    with pytest.raises(CutOffError):
        prepare(define(), out, raw=raw)
    whole = digest(out, "**/*.*")
    assert work_of(out).is_dir()
    prepare(define(), out, raw=raw, force=True)
    assert digest(out, "**/*.*") == whole
    assert not list(tmp_path.glob(".*"))


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made_from = identity(define(), None, "duckdb")
    with (
        WorkFolder(out, made_from),
        pytest.raises(UserError, match="another 'hisac-rec prepare' is making it"),
    ):
        prepare(define(), out, raw=shop_log(tmp_path / "raw"))


def test_a_raw_log_goes_on_at_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rawlog, "BLOCK_EVENTS", 300)
    work = WorkFolder(tmp_path / "out", identity(define(), None, "duckdb"))
    with work, rawlog.RawLog(define(), shop_log(tmp_path / "raw"), work, "x", "1GB", 1) as log:
        every = [block.item.tolist() for block in log.blocks()]
        assert len(every) > 5
        for first in (0, 1, len(every) - 1, len(every)):
            assert [block.item.tolist() for block in log.blocks(first)] == every[first:]
        work.finish()
