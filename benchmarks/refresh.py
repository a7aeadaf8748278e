"""What a refresh of semantic IDs costs a trained ranker. Writes docs/results/refresh.md.

A quarter of MovieLens-1M's users, on two days: the first knows the oldest 90 % of each user's
events and lacks every tenth film, the second has all. HiSAC is trained on the first. On the second
it is warm-started beside each way to give items their IDs, and scored on the same test requests:
at once, and after a short training::

    python -m benchmarks.refresh --raw ../shared/data/ml-1m --seeds 3
    python -m benchmarks.refresh --report-only
"""

from __future__ import annotations

import argparse
import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks.comparison import command, sets
from hisac_rec.config import read_toml
from hisac_rec.data.contract import PreparedData
from hisac_rec.evaluation.metrics import auc, gauc
from hisac_rec.evaluation.predictions import read_predictions
from hisac_rec.semantic.fit import read_report
from hisac_rec.semantic.predecessor import match_items
from hisac_rec.semantic.store import Semantics, load_semantics, save_semantics
from hisac_rec.shipped import find_config
from hisac_rec.train.run import stack_versions

PAGE = Path("docs/results/refresh.md")
RECORD = Path("docs/results/refresh.json")
USERS = '"user" % 4 = 0'
BEFORE = "rank < 0.9 AND item % 10 <> 3"
TRAIN = ("train.epochs=2", "loader.max_candidates=512")
STILL = ("train.max_candidates=1", "train.dense_lr=1e-12", "train.sparse_lr=1e-12")
"""A training that changes nothing: the weights as they were taken over, saved and scored."""
SHORT = ("train.max_candidates=40000", "train.epochs=1", "loader.max_candidates=512")
TRAININGS = (
    ("at once", STILL, ()),
    ("after 40,000 candidates", SHORT, ("--warm-start-optimizer",)),
)
WAYS = {
    "unrefreshed": "old codes; new films stand at the mean of all, as unknown",
    "extend": "`--from`: old codebook, new films placed by it",
    "refit": "`--from --refit`: aligned",
    "refit, churn unbound": "`--from --refit --set refresh.churn=1`",
    "anew": "a fit that knows no other",
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, help="folder of MovieLens-1M's files")
    parser.add_argument("--work", type=Path, default=Path("runs/refresh"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.report_only:
        if arguments.raw is None:
            parser.error("--raw is needed, or --report-only")
        measure(arguments.raw, arguments.work, range(arguments.seeds))
    write_page(json.loads(RECORD.read_text()))


def measure(raw: Path, work: Path, seeds: range) -> None:
    """Prepare both days, refresh in every way, train and score."""
    yesterday, folders = prepare_days(raw, work)
    there = PreparedData(yesterday)
    codes = {}
    for way, folder in folders.items():
        refresh(way, yesterday, folder)
        codes[way] = describe(PreparedData(folder), there)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        first = work / f"run-{seed}"
        seeded = (f"train.seed={seed}",)
        if not (first / "summary.json").is_file():
            command("train", "hisac", yesterday, "--out", first, *sets((*TRAIN, *seeded)))
        for way, folder in folders.items():
            for training, keys, optimizer in TRAININGS:
                run = work / f"run-{seed}-{way}-{training}".replace(" ", "-").replace(",", "")
                if not (run / "report-test.json").is_file():
                    started = ("--warm-start", first, "--out", run, *optimizer)
                    command("train", "hisac", folder, *started, *sets((*keys, *seeded)))
                    command("evaluate", run, "--draws", "0")
                rows.append(
                    {"seed": seed, "way": way, "training": training}
                    | score(run, PreparedData(folder), there)
                )
    record = {
        "date": date.today().isoformat(),
        "versions": stack_versions(),
        "codes": codes,
        "rows": rows,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


def prepare_days(raw: Path, work: Path) -> tuple[Path, dict[str, Path]]:
    """The first day, and the second once for each way to refresh."""
    source = read_toml(find_config("datasets", "movielens_1m"))["source"]
    rank = 'percent_rank() OVER (PARTITION BY "user" ORDER BY time) AS rank'
    events = f"SELECT * FROM (SELECT *, {rank} FROM ({source['events']})) WHERE {USERS}"
    of = {
        "day-0": (
            f"source.events={events} AND {BEFORE}",
            f"source.items=SELECT * FROM ({source['items']}) WHERE item % 10 <> 3",
        ),
        "day-1": (f"source.events={events}",),
    }
    for day, keys in of.items():
        if not (work / day).is_dir():
            grouped = sets(("requests.group_events=8", *keys))
            command("prepare", "movielens_1m", "--raw", raw, "--out", work / day, *grouped)
    if not (work / "day-0" / "semantic_ids.parquet").is_file():
        command("semantic-ids", work / "day-0")
    folders = {way: work / f"day-1-{way}".replace(" ", "-").replace(",", "") for way in WAYS}
    for folder in folders.values():
        if not folder.is_dir():
            shutil.copytree(work / "day-1", folder)
    return work / "day-0", folders


def refresh(way: str, yesterday: Path, folder: Path) -> None:
    """Give the second day its IDs, where they are not there yet."""
    if (folder / "semantic_ids.parquet").is_file():
        return
    since = () if way == "anew" else ("--from", yesterday)
    again = ("--refit",) if way.startswith("refit") else ()
    loose = sets(("refresh.churn=1",)) if "unbound" in way else ()
    command("semantic-ids", folder, *since, *again, *loose)
    if way == "unrefreshed":
        forget_new(PreparedData(folder), PreparedData(yesterday))


def forget_new(data: PreparedData, there: PreparedData) -> None:
    """Put the items that yesterday did not know at the mean, as an unrefreshed ranker would."""
    found = load_semantics(data)
    new = match_items(data, there) < 0
    codes, vectors, known = found.codes.copy(), found.vectors.copy(), found.known & ~new
    codes[new], vectors[new] = codes[0], vectors[0]
    report = read_report(data)
    assert report is not None
    save_semantics(
        data.root,
        codes,
        vectors,
        found.codebook,
        known,
        data_fingerprint=data.manifest.fingerprint,
        report_json=report.model_dump_json(indent=2),
        lineage=found.lineage,
    )


def describe(data: PreparedData, there: PreparedData) -> dict[str, Any]:
    """Quality of the codes, and the churn at the best naming of today's codes."""
    report = read_report(data)
    assert report is not None
    was, now = load_semantics(there), load_semantics(data)
    rows = match_items(data, there)
    both = (rows > 0) & now.known & was.known[rows.clip(0)]
    named = renamed(now, was.codes[rows[both]], both)
    differs = named != was.codes[rows[both]]
    return {
        "explained": report.quality.levels[-1].variance_explained,
        "perplexity": [level.perplexity for level in report.quality.levels],
        "unchanged": int(both.sum()),
        "new": int((rows < 0).sum()),
        "churn": [float(share) for share in differs.mean(0)],
        "churn_path": float(differs.any(1).mean()),
    }


def renamed(now: Semantics, was: np.ndarray, both: np.ndarray) -> np.ndarray:
    """[n, D] today's codes under the names that most of their items had (optimal assignment)."""
    codes = now.codes[both].copy()
    if now.lineage:
        return codes
    for level, count in enumerate(now.code_counts):
        shared = np.zeros((count, count), np.int64)
        np.add.at(shared, (codes[:, level], was[:, level]), 1)
        names = linear_sum_assignment(-shared)[1]
        codes[:, level] = names[codes[:, level]]
    return codes


def score(run: Path, data: PreparedData, there: PreparedData) -> dict[str, float]:
    """AUC over all test candidates, over those that the first day knew, and over the new."""
    found = read_predictions(run / "predictions" / "test")
    new = match_items(data, there)[found.item] < 0
    parts = {"auc": slice(None), "auc_known": ~new, "auc_new": new}
    figures = {name: auc(found.label[of], found.logit[of]) for name, of in parts.items()}
    return figures | {
        "gauc": gauc(found.label, found.logit, found.user),
        "candidates": len(found.label),
        "candidates_new": int(new.sum()),
    }


def write_page(record: dict[str, Any]) -> None:
    """The page, from the record."""
    rows = record["rows"]
    seeds = sorted({row["seed"] for row in rows})
    one = rows[0]
    lines = [
        "# A refresh of semantic IDs, and the ranker that goes on",
        "",
        "A quarter of MovieLens-1M's users. The first day knows the oldest 90 % of each user's",
        "events and lacks every tenth film; the second has all. HiSAC is trained on the first day",
        f"(`{' '.join(TRAIN)}`) and warm-started on the second beside the IDs of each way:",
        f"{one['candidates']:,} test candidates of the second day, {one['candidates_new']:,} of "
        "them new films.",
        f"Mean of seeds {', '.join(map(str, seeds))}, ± half their range.",
        "How it works: [semantic IDs from day to day](../semantic-ids-refresh.md).",
        "",
        "| IDs of the second day | variance explained | perplexity | churn by level | of paths |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for way, of in record["codes"].items():
        lines.append(
            f"| {way}: {WAYS[way]} | {of['explained']:.1%} "
            f"| {', '.join(f'{one:.1f}' for one in of['perplexity'])} "
            f"| {', '.join(f'{share:.1%}' for share in of['churn'])} | {of['churn_path']:.1%} |"
        )
    known = next(iter(record["codes"].values()))["unchanged"]
    lines += [
        "",
        f"Churn is the share of the {known:,} films with a vector on both days that changed their "
        "code. Of a fit",
        "anew, codes are first renamed as well as an optimal assignment can.",
    ]
    for training in dict.fromkeys(row["training"] for row in rows):
        lines += [
            "",
            f"## Scored {training}",
            "",
            "| IDs | AUC | against unrefreshed | known films | against | new films | GAUC |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for way in record["codes"]:
            mine, base = (
                [row for row in rows if (row["way"], row["training"]) == (name, training)]
                for name in (way, "unrefreshed")
            )
            cells = []
            for key, against in (("auc", True), ("auc_known", True), ("auc_new", False)):
                cells.append(_spread([row[key] for row in mine]))
                if against:
                    gain = [a[key] - b[key] for a, b in zip(mine, base, strict=True)]
                    cells.append(_spread(gain, signed=True))
            lines.append(
                f"| {way} | {' | '.join(cells)} | {_spread([row['gauc'] for row in mine])} |"
            )
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    notes = PAGE.parent / "notes" / "refresh.md"
    if notes.is_file():
        lines += ["", notes.read_text().strip()]
    lines += [
        "",
        f"{record['date']}: `python -m benchmarks.refresh --raw FOLDER --seeds {len(seeds)}`; "
        f"{versions}",
    ]
    PAGE.write_text("\n".join(lines) + "\n")


def _spread(values: list[float], *, signed: bool = False) -> str:
    mean = float(np.mean(values))
    text = f"{mean:+.4f}" if signed else f"{mean:.4f}"
    half = (max(values) - min(values)) / 2
    return f"{text} ± {half:.4f}" if len(values) > 1 else text


if __name__ == "__main__":
    main()
