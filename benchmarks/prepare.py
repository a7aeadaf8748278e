"""Prepare a large event log under a limit of memory, and write what each stage took.

    python -m benchmarks.prepare --events 100000000 --users 1000000 --work /data/scale

makes the log (once), runs ``hisac-rec prepare`` on it in a child process on 2 cores and within
8 GB, and writes ``docs/results/prepare.md``.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import time
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa

from benchmarks.scale.limits import Watched, folder_bytes, run_limited
from benchmarks.scale.log import write_log
from hisac_rec.data.contract import PreparedData
from hisac_rec.preparation.stages import Stage
from hisac_rec.preparation.work import read_record

DEFINITION = Path(__file__).parent / "scale" / "events.toml"
GB = 1e9


def page(
    arguments: argparse.Namespace, raw_bytes: int, watched: Watched, data: PreparedData
) -> str:
    """The results page as Markdown."""
    stages = read_record(data.root)
    rows = "\n".join(_row(stage) for stage in stages if stage.seconds >= 0.1)
    counts = "\n".join(
        f"| {split} | {c.users:,} | {c.events:,} | {c.requests:,} | {c.candidates:,} |"
        for split, c in data.manifest.splits.items()
    )
    resident = max(stage.peak_bytes for stage in stages) / GB
    written = folder_bytes(data.root)
    return f"""# Preparing {arguments.events:,} events: measured {date.today().isoformat()}

**{watched.seconds:,.0f} s on {arguments.cores} cores; at most {resident:.1f} GB resident, under a \
limit of {arguments.memory_gb:g} GB.** Memory was limited by {watched.limited_by}: \
{watched.peak_bytes / GB:.1f} GB at most. On disk: {raw_bytes / GB:.2f} GB of raw Parquet, \
{watched.disk_bytes / GB:.2f} GB at most in the work folder, {written / GB:.2f} GB prepared.

The log: {arguments.users:,} users, {arguments.items:,} items asked for by Zipf's law, in the \
order of time. Every event is history and candidate; those of a user within an hour share a \
request. Users are numbers, items texts with two features and an embedding of 16 numbers.

{platform.machine()}, Python {platform.python_version()}, duckdb {duckdb.__version__}, \
pyarrow {pa.__version__}; `--memory-limit {arguments.sql_memory} --threads {arguments.cores}`.

Made by `python -m benchmarks.prepare --events {arguments.events} --users {arguments.users} \
--items {arguments.items} --sql-memory {arguments.sql_memory}`.

| stage | seconds | peak memory, GB | read, GB | written, GB |
| --- | ---: | ---: | ---: | ---: |
{rows}

| split | users | history events | requests | candidates |
| --- | ---: | ---: | ---: | ---: |
{counts}
"""


def _row(stage: Stage) -> str:
    sizes = (stage.peak_bytes, stage.read_bytes, stage.written_bytes)
    numbers = " | ".join(f"{size / GB:.2f}" for size in sizes)
    return f"| {stage.title} | {stage.seconds:,.1f} | {numbers} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory-gb", type=float, default=8.0, help="limit of the whole process")
    parser.add_argument("--sql-memory", default="4GB", help="--memory-limit of the command")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/scale"), help="log and output")
    parser.add_argument("--page", type=Path, default=Path("docs/results/prepare.md"))
    arguments = parser.parse_args()
    raw = arguments.work / f"raw-{arguments.events}-{arguments.users}-{arguments.items}"
    out = arguments.work / "prepared"
    if not (raw / "users.parquet").is_file():
        shutil.rmtree(raw, ignore_errors=True)
        started = time.monotonic()
        write_log(
            raw, arguments.events, arguments.users, arguments.items, arguments.seed, arguments.cores
        )
        sys.stdout.write(f"log written in {time.monotonic() - started:.0f} s\n")
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "hisac_rec", "prepare", str(DEFINITION), "--raw", str(raw)]
    command += ["--out", str(out), "--memory-limit", arguments.sql_memory, "--fresh"]
    command += ["--threads", str(arguments.cores)]
    log = arguments.work / "prepare.log"
    building = out.with_name(f".{out.name}.preparing")
    watched = run_limited(
        command,
        int(arguments.memory_gb * GB),
        arguments.cores,
        lambda: folder_bytes(building),
        log,
    )
    if watched.code != 0:
        sys.exit(f"ended with {watched.code} after {watched.seconds:.0f} s; see {log}")
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    arguments.page.write_text(page(arguments, folder_bytes(raw), watched, PreparedData(out)))
    summary = {"seconds": watched.seconds, "peak": watched.peak_bytes, "page": str(arguments.page)}
    sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    main()
