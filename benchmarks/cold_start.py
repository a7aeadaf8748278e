"""Items that training never saw: what semantic IDs are worth for them, on every data set.

A share of the items is kept out of the training period altogether and comes in with validation
(``split.cold_items``; the generator has ``fresh_items``), semantic IDs are fitted on what is left,
and models with and without them are compared on the test candidates that are such items::

    python -m benchmarks.cold_start movielens-100k --raw ../shared/data/ml-100k
    python -m benchmarks.cold_start synthetic-1000
    python -m benchmarks.cold_start --page

The cells are committed under ``docs/results/comparison/<study>-cold``; the page is made from them
and from the words in ``docs/results/notes/cold-start.md``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.comparison import BENCHMARKS, OUT, STUDIES, command, prepare_study, sets
from benchmarks.comparison_page import NAMES, RESULTS
from hisac_rec.compare.cells import Cell, Layout
from hisac_rec.compare.summary import ModelSummary, summarise

SHARE = 0.15
"""Of the items: kept out of training."""
SHIPPED = ("hisac", "mean_pooling", "no_history")
AXIS, UNSEEN = "item_popularity", "unseen"
"""Axis and bucket of the slice of items that no training candidate was."""
WITH_FEATURES = "kuairand-features"
"""KuaiRand has no texts, so a new video has no codes; here its features are its text."""
FEATURES_AS_TEXT = (
    "source.items=SELECT video_id AS item, author_id AS author, upload_type, "
    "music_type::INTEGER AS music_type, string_split(tag, ',') AS tag, "
    "(log2(1 + video_duration / 1000))::INTEGER AS duration, "
    "concat_ws(' ', 'author' || author_id, 'upload' || upload_type, "
    "'music' || music_type::INTEGER, replace('tag' || tag, ',', ' tag')) AS text "
    "FROM '{raw}/item_features.parquet'",
    "semantic_ids.source=text+collaborative",
)
COLUMNS = {
    "hisac": "HiSAC",
    "hisac_no_codes": "its codes in the history alone",
    "mean_pooling": "mean pooling",
    "mean_no_codes": "without semantic IDs",
    "no_history": "no history",
    "no_history_no_codes": "without semantic IDs",
}
"""Model file -> title of its column; each is followed by itself without semantic IDs."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=(*STUDIES, WITH_FEATURES), nargs="?")
    parser.add_argument("--raw", type=Path, help="folder of the publisher's files")
    parser.add_argument("--seeds", default="3")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--work", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--page", action="store_true", help="write the page of the cells there are")
    arguments = parser.parse_args()
    if arguments.page:
        write_page()
        return
    if arguments.study is None:
        parser.error("name a study, or say --page")
    name, variant = arguments.study, "-cold"
    if name == WITH_FEATURES:
        name, variant = "kuairand", "-features-cold"
    study = STUDIES[name]
    new = f"split.cold_items={SHARE}"
    if study.dataset == "synthetic":  # a generator makes its own splits
        new = f"synthetic.fresh_items={2 * SHARE}"
    keys = (new, *FEATURES_AS_TEXT) if arguments.study == WITH_FEATURES else (new,)
    data = prepare_study(name, arguments.work, arguments.raw, variant, keys)
    models = [*SHIPPED, *sorted(map(str, (BENCHMARKS / "cold").glob("*.toml")))]
    sized = ("--seeds", arguments.seeds, "--jobs", arguments.jobs)
    out = OUT / f"{arguments.study}-cold"
    shared = (*sets(study.train), "--baseline", "no_history_no_codes")
    command("compare", *models, "--data", data, "--out", out, *sized, *shared)


def write_page() -> None:
    """Write docs/results/cold-start.md from all cells."""
    words = (RESULTS / "notes" / "cold-start.md").read_text(encoding="utf-8").strip()
    titles = {**NAMES, WITH_FEATURES: "KuaiRand, features as text"}
    found = {
        folder: summarise(layout, "no_history_no_codes")[0]
        for folder in titles
        if any((layout := Layout(OUT / f"{folder}-cold")).cells.glob("*/*/seed*.json"))
    }
    parts = ["# Cold start: items that training never saw", words]
    for cold, title in ((True, "New items"), (False, "All candidates")):
        for metric in ("auc", "gauc"):
            lines = [
                "| data set | candidates | " + " | ".join(COLUMNS.values()) + " |",
                "| --- | ---: |" + " ---: |" * len(COLUMNS),
            ]
            for folder, summary in found.items():
                models = {one.cells[0].model: one for one in summary.models}
                values = [
                    _shown(models[model], metric, cold) if model in models else ""
                    for model in COLUMNS
                ]
                count = _rows(summary.first, cold)
                lines.append(f"| {titles[folder]} | {count:,} | " + " | ".join(values) + " |")
            parts.append(f"## {title}: {metric.upper()}\n\n" + "\n".join(lines))
    days = {cell.date for s in found.values() for one in s.models for cell in one.cells}
    example = next(cell for s in found.values() for one in s.models for cell in one.cells)
    versions = ", ".join(f"{name} {version}" for name, version in example.versions.items())
    parts.append(f"{min(days)} to {max(days)}, {example.host}; {versions}")
    (RESULTS / "cold-start.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _rows(cell: Cell, cold: bool) -> int:
    if not cold:
        return cell.rows.rows
    return next(s.rows for s in cell.scores.slices if (s.axis, s.bucket) == (AXIS, UNSEEN))


def _shown(model: ModelSummary, metric: str, cold: bool) -> str:
    found = model.sliced(AXIS, metric)[UNSEEN] if cold else model.metric(metric)
    if found.mean is None:
        return ""
    deviation = "" if found.deviation is None else f" ± {found.deviation:.3f}"
    return f"{found.mean:.3f}{deviation}"


if __name__ == "__main__":
    main()
