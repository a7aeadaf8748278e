"""The folder in which a data set is made: beside the output, kept when the work is cut off.

``.<name>.preparing`` beside the output holds what was done so far; the same command goes on
from there. It becomes the output by a rename at the end, so that a prepared data set is whole
or absent. What it was made from is written down in it: another definition, other raw files or
another release start afresh.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb

from hisac_rec import __version__
from hisac_rec.data.contract import CONTRACT_VERSION
from hisac_rec.errors import UserError
from hisac_rec.files import replace_text
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.stages import Stage, Stages

log = logging.getLogger(__name__)

Identity = dict[str, Any]


class OutOfResourceError(UserError):
    """Memory or disk ran out: what was done stays, the same command goes on."""


def identity(definition: DatasetDefinition, raw: Path | None, engine: str) -> Identity:
    """What a half-made data set was made from; all of it must agree to go on.

    Args:
        definition: the definition, overrides included.
        raw: folder of raw files.
        engine: what runs the SQL.
    """
    return {
        "definition": definition.model_dump(mode="json"),
        "raw files": _raw_files(definition, raw),
        "engine": engine,
        "release": [__version__, CONTRACT_VERSION, duckdb.__version__],
    }


class WorkFolder:
    """Use as a context manager; :meth:`finish` makes the output.

    Left by a :class:`UserError` (something to mend, other than memory or disk) the folder goes;
    left by anything else it stays.

    Args:
        out: the output, absolute.
        made_from: of :func:`identity`.
        fresh: throw away what an earlier start has done.

    Raises:
        UserError: another process is making the same output.
    """

    def __init__(self, out: Path, made_from: Identity, *, fresh: bool = False) -> None:
        self._out = out
        self.root = out.with_name(f".{out.name}.preparing")
        self.building, self.scratch = self.root / "new", self.root / "scratch"
        self._state = self.root / "state.json"
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.root / "lock", out)
        reason = "--fresh" if fresh and self._state.is_file() else self._stale(made_from)
        if reason:
            log.warning("%s: starts afresh: %s", out, reason)
        resumed = self._state.is_file() and not reason
        if not resumed:
            self._empty()
            self.building.mkdir()
            self.scratch.mkdir()
            replace_text(self._state, json.dumps({"made_from": made_from, "starts": 0}))
        state = json.loads(self._state.read_text())
        self.starts: int = state["starts"] + 1
        replace_text(self._state, json.dumps({**state, "starts": self.starts}))
        self.stages = Stages(self.root / "stages.json")
        if resumed:
            names = ", ".join(stage.title for stage in self.stages.all)
            log.info("%s: goes on where it stopped (begun so far: %s)", out, names or "nothing")

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        keep = error is not None and (
            not isinstance(error, UserError) or isinstance(error, OutOfResourceError)
        )
        if keep:
            log.warning("%s keeps what was done: the same command goes on from there", self.root)
        else:
            away = self.root.with_name(f".{self._out.name}.removed-{os.getpid()}")
            self.root.rename(away)
            shutil.rmtree(away, ignore_errors=True)
        os.close(self._lock)

    def once(self, title: str, work: Callable[[], None]) -> None:
        """Do and measure a stage, unless an earlier start has finished it."""
        done = self.root / f"done-{title.replace(' ', '-')}"
        if done.exists():
            return
        with self.stages.measure(title):
            work()
        done.touch()

    def finish(self) -> None:
        """Rename what was built to the output, which is replaced where it is there."""
        record = {"starts": self.starts, "stages": [asdict(stage) for stage in self.stages.all]}
        old = self.root / "old"
        if self._out.exists():
            self._out.rename(old)
        self.building.rename(self._out)
        replace_text(record_path(self._out), json.dumps(record, indent=2) + "\n")

    def _stale(self, made_from: Identity) -> str:
        """Why an earlier start cannot be gone on with; empty where it can, or there is none."""
        if not self._state.is_file():
            return ""
        try:
            then = json.loads(self._state.read_text())["made_from"]
        except (ValueError, KeyError):
            return f"{self._state} is not readable"
        now = json.loads(json.dumps(made_from))
        for part, value in now.items():
            before = then.get(part)
            if before != value and part == "raw files" and isinstance(before, dict):
                names = {*before, *value}
                changed = sorted(n for n in names if before.get(n) != value.get(n))
                return f"raw files changed since the last start: {', '.join(changed[:3])}"
            if before != value:
                return f"another {part} than at the last start"
        return ""

    def _empty(self) -> None:
        for path in self.root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()


def sweep(out: Path) -> None:
    """Remove what a start that was killed after the output was whole had no time to remove."""
    for path in out.parent.glob(f".{out.name}.removed-*"):
        shutil.rmtree(path, ignore_errors=True)
    root = out.with_name(f".{out.name}.preparing")
    if (root / "state.json").is_file() and not (root / "new").exists():
        handle = _locked(root / "lock", out)
        shutil.rmtree(root, ignore_errors=True)
        os.close(handle)


def record_path(out: Path) -> Path:
    """Where the stages of a finished preparation are kept: beside the data, which are the same
    bytes however long they took.
    """
    return out.with_name(f"{out.name}.prepare.json")


def read_record(out: Path) -> list[Stage]:
    """The stages of a finished preparation."""
    return [Stage(**stage) for stage in json.loads(record_path(out).read_text())["stages"]]


def _locked(path: Path, out: Path) -> int:
    """Take the lock of the folder; the system lets go of it when the process ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise UserError(
            f"{out}: another 'hisac-rec prepare' is making it; wait for it, or give another --out"
        ) from None
    return handle


def _raw_files(definition: DatasetDefinition, raw: Path | None) -> dict[str, list[int]]:
    """Raw file -> size and time of change, for every file that the definition names."""
    source = definition.source
    if source is None or raw is None:
        return {}
    tables = source.tables.values()
    texts = [source.events, source.items, source.users]
    texts += [text for table in tables for text in (table.select, table.otherwise)]
    named = [name for text in texts if text for name in re.findall(r"\{raw\}/([^'\"]+)", text)]
    named += [*source.files, *(table.optional_file or "" for table in tables)]
    found = {}
    for name in sorted({name for name in named if name}):
        for path in sorted(raw.glob(name)):
            stat = path.stat()
            found[str(path.relative_to(raw))] = [stat.st_size, stat.st_mtime_ns]
    return found
