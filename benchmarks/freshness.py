"""What a cache costs in AUC: by its age and by its bits. Writes docs/results/serving.md.

For each data set with a clock, HiSAC is trained as in the comparison, every request of the test
split is compressed as of some time before it, and scored with that cache and the newest events
(``hisac-rec compress --at requests --age``, ``hisac-rec score --cache``)::

    python -m benchmarks.freshness movielens-100k --raw ../shared/data/ml-100k
    python -m benchmarks.freshness kuairand --raw ../shared/data/kuairand-pure-slice
    python -m benchmarks.freshness synthetic-1000
    python -m benchmarks.freshness --report-only
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.comparison import STUDIES, command, prepare_study, sets
from hisac_rec.data.contract import PreparedData
from hisac_rec.evaluation.report import evaluate_predictions
from hisac_rec.serving.cache import Cache
from hisac_rec.train.run import stack_versions

PAGE = Path("docs/results/serving.md")
RECORD = Path("docs/results/serving")
HOUR = 3600
AGES = {"1 hour": HOUR, "1 day": 24 * HOUR, "1 week": 7 * 24 * HOUR, "4 weeks": 28 * 24 * HOUR}
BITS = ("fp16", "int8")
CLOCKED = ("movielens-100k", "kuairand", "synthetic-1000")
SAID = {
    "movielens-100k": "Most users rate all their films in one or two sessions, so an hour ago half "
    "of the history was not there yet, and the newest 20 events do not make up for it.",
    "kuairand": "Two weeks of impressions and what was watched before them: within a week little "
    "is added, and four weeks before a request the log had not begun.",
    "synthetic-1000": "Interests do not change here: an old cache lacks events, not news.",
}
"""What to know of a data set when reading its table."""
DRAWS = 200


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=CLOCKED, nargs="?")
    parser.add_argument("--raw", type=Path, help="folder of the publisher's files")
    parser.add_argument("--work", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--report-only", action="store_true")
    arguments = parser.parse_args()
    if arguments.study:
        measure(arguments.study, arguments.work, arguments.raw)
    elif not arguments.report_only:
        parser.error("name a study, or say --report-only")
    write_page()


def measure(study: str, work: Path, raw: Path | None) -> None:
    """Train, compress at all ages and precisions, score, compare."""
    data = prepare_study(study, work, raw)
    folder = work / f"{study}-serving"
    run = folder / "run"
    if not (run / "report-test.json").is_file():
        command("train", "hisac", data, "--out", run, *sets(STUDIES[study].train))
        command("evaluate", run, "--draws", "0")
    whole = run / "predictions" / "test"
    rows: list[dict[str, Any]] = []
    for name, options in _variants().items():
        cache, scores = folder / f"cache-{name}", folder / f"scores-{name}"
        command("compress", run, "--out", cache, "--at", "requests", *options)
        command("score", run, "--cache", cache, "--out", scores)
        report = evaluate_predictions(
            scores / "predictions",
            PreparedData(data),
            name=name,
            baseline_predictions={"whole": whole},
            draws=DRAWS,
        )
        found = report.predictor(name)
        opened = Cache(cache)
        rows.append(
            {
                "name": name,
                "auc": found.metrics["auc"].value,
                "gauc": found.metrics["gauc"].value,
                **{
                    f"{metric}_lost": _negative((found.differences or {})[metric].model_dump())
                    for metric in ("auc", "gauc")
                },
                "bytes": opened.nbytes / max(1, len(opened)),
                "agents": float(np.mean(opened.agents())),
                "events": float(np.mean(opened.keys.seen)),
            }
        )
    record = {
        "date": date.today().isoformat(),
        "versions": stack_versions(),
        "rows": rows,
        "whole": {metric: report.value("whole", metric) for metric in ("auc", "gauc")},
        "test": {"rows": report.rows, "users": report.users},
        "dim": 32,
    }
    RECORD.mkdir(parents=True, exist_ok=True)
    (RECORD / f"{study}.json").write_text(json.dumps(record, indent=1) + "\n")


def _variants() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {"fp32": ()}
    found |= {bits: ("--precision", bits) for bits in BITS}
    found |= {name: ("--age", str(age)) for name, age in AGES.items()}
    return {name.replace(" ", "-"): options for name, options in found.items()}


def _negative(gain: dict[str, float | None]) -> dict[str, float | None]:
    value, low, high = (gain[key] for key in ("value", "low", "high"))
    return {
        "value": None if value is None else -value,
        "low": None if high is None else -high,
        "high": None if low is None else -low,
    }


def write_page() -> None:
    """The page, from the records that are there."""
    records = {
        study: json.loads((RECORD / f"{study}.json").read_text())
        for study in CLOCKED
        if (RECORD / f"{study}.json").is_file()
    }
    lines = [
        "# What a cache costs",
        "",
        "HiSAC, trained as in the [comparison](comparison.md) (seed 0). Every request of the test",
        "split is compressed as of some time before it and scored with that cache; the newest 20",
        "events are read as they are. *Lost* is whole histories minus the cache, with a 95 %",
        "interval of a paired bootstrap over users. What a cache holds and how it is read:",
        "[serving](../serving.md); latency: [speed](speed.md#serving).",
    ]
    for study, record in records.items():
        test, whole = record["test"], record["whole"]
        lines += [
            "",
            f"## {study}",
            "",
            f"{test['rows']:,} test candidates of {test['users']:,} users; whole histories: AUC "
            f"{whole['auc']:.4f}, GAUC {whole['gauc']:.4f}. {SAID[study]}",
            "",
            "| cache | AUC lost | GAUC lost | bytes a history | events | agents |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in record["rows"]:
            lines.append(
                f"| {row['name'].replace('-', ' ')} | {_lost(row['auc_lost'])} | "
                f"{_lost(row['gauc_lost'])} | {row['bytes']:,.0f} | {row['events']:,.0f} | "
                f"{row['agents']:.1f} |"
            )
        raw = " ".join(("--raw FOLDER",) if not study.startswith("synthetic") else ())
        versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        lines += [
            "",
            f"{record['date']}: `python -m benchmarks.freshness {study} {raw}`; {versions}",
        ]
    lines += _load()
    if records:
        _draw(records)
        lines += ["", "![AUC lost against the cache's age](serving/age.svg)"]
    PAGE.write_text("\n".join(line.rstrip() for line in lines) + "\n")


def _load() -> list[str]:
    """What ``benchmarks/load.py`` found, where it ran."""
    path = RECORD / "load.json"
    if not path.is_file():
        return []
    found = json.loads(path.read_text())
    memory = found["memory_mib"]
    settled = memory[len(memory) // 10 :]
    lines = [
        "",
        "## A server under load",
        "",
        f"`hisac-rec serve --threads {found['threads']} --queue {found['queue']}` and its clients,"
        f" another process, on the same two cores: requests of {found['candidates']} candidates "
        "for random users as fast as they are answered, one in ten an update. First as many "
        f"clients as may wait, for {found['minutes']:g} minutes, then four times as many.",
        "",
        "| clients | answers | p50 | p99 |",
        "| ---: | --- | ---: | ---: |",
    ]
    for part in ("steady", "crowd"):
        of = found[part]
        answers = ", ".join(f"{n:,} x {status}" for status, n in sorted(of["answers"].items()))
        lines.append(f"| {of['clients']} | {answers} | {of['p50_ms']} ms | {of['p99_ms']} ms |")
    return [
        *lines,
        "",
        f"Resident memory: {settled[0]:,.0f} MiB after the first tenth, {max(settled):,.0f} MiB at "
        f"most, {settled[-1]:,.0f} MiB at the end.",
        "",
        f"{found['date']}: `python -m benchmarks.load RUN --minutes {found['minutes']:g}`, RUN the "
        "comparison's HiSAC on synthetic-1000",
    ]


def _lost(of: dict[str, float | None]) -> str:
    if of["value"] is None:
        return "-"
    text = _signed(of["value"])
    if of["low"] is None or of["high"] is None:
        return text
    return f"{text} ({_signed(of['low'])} to {_signed(of['high'])})"


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"  # no minus before nothing


def _draw(records: dict[str, Any]) -> None:
    with rc_context({"svg.hashsalt": "age", "svg.fonttype": "none"}):
        drawing = Figure(figsize=(7, 4), layout="constrained")
        axes = drawing.subplots()
        for study, record in records.items():
            rows = {
                row["name"].replace("-", " "): row["auc_lost"]["value"] for row in record["rows"]
            }
            axes.plot(
                [age / HOUR for age in AGES.values()], [rows[n] for n in AGES], "o-", label=study
            )
        axes.set(xscale="log", xlabel="age of the cache, hours", ylabel="AUC lost")
        axes.axhline(0, color="#888", linewidth=0.8)
        axes.legend()
        RECORD.mkdir(parents=True, exist_ok=True)
        drawing.savefig(RECORD / "age.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
