"""Write docs/results/comparison.md: all studies of the comparison side by side.

Made from the committed cells of ``docs/results/comparison/*/cells`` and the words in
``docs/results/notes/comparison.md``, which are a person's::

    python benchmarks/comparison_page.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hisac_rec.compare.cells import Layout
from hisac_rec.compare.summary import (
    DataSummary,
    Difference,
    ModelSummary,
    Spread,
    differences,
    summarise,
)

RESULTS = Path("docs/results")
SHOWN = "hisac"
SHIPPED = "shipped"
"""The way of ``benchmarks/semantics.py`` that the others are compared to."""
STRENGTH = "strength"
"""The study whose question is how far each method goes where its assumption holds."""

NAMES = {
    "movielens-1m": "MovieLens-1M",
    "movielens-100k": "MovieLens-100K",
    "kuairand": "KuaiRand",
    "online-retail": "Online Retail",
    "statics2011": "Statics 2011",
    "synthetic-100": "synthetic 100",
    "synthetic-1000": "synthetic 1,000",
    "synthetic-10000": "synthetic 10,000",
}
"""Folder of a study -> title, in the order of the columns."""


VARIANTS = {
    "groups200": "At 200 groups: HiSAC against each compressor",
    "ablations": "HiSAC's switches, one at a time",
    "reach": "Sparse alpha: events that reach their nearest agents alone",
    "lengths": "Against the history's length",
    "traffic": "What travels between two ranks, and in how many bits",
    "tuned": "Tuned: the same number of trials for every method",
}
"""Ending of a study's folder -> title of the section."""


@dataclass(frozen=True)
class Study:
    """A finished study, its differences taken to HiSAC."""

    folder: str
    summary: DataSummary

    @property
    def title(self) -> str:
        """As in the tables."""
        return NAMES.get(self.folder, self.folder)

    @property
    def models(self) -> dict[str, ModelSummary]:
        """By stem of the model file."""
        return {one.cells[0].model: one for one in self.summary.models}


def main() -> None:
    """Read all studies and write the page."""
    found = {folder: _read(folder) for folder in (*NAMES, STRENGTH)}
    studies = [found[folder] for folder in NAMES if found[folder] is not None]
    words = (RESULTS / "notes" / "comparison.md").read_text(encoding="utf-8").strip()
    parts = [
        f"# The history methods compared: {_days(studies)}",
        words,
        _goals(studies),
        *_metric_tables(studies),
        _difference_table(studies),
        _strength_table(found[STRENGTH]),
        *[_variants(kind, title) for kind, title in VARIANTS.items()],
        _semantics(),
        _where(studies),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    path = RESULTS / "comparison.md"
    path.write_text(text, encoding="utf-8")


def _read(folder: str) -> Study | None:
    layout = Layout(RESULTS / "comparison" / folder)
    if not any(layout.cells.glob("*/*/seed*.json")):
        return None
    (summary,) = summarise(layout, SHOWN)
    return Study(folder, summary)


def _days(studies: Sequence[Study]) -> str:
    days = sorted(cell.date for s in studies for m in s.summary.models for cell in m.cells)
    return days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"


def _independent(model: ModelSummary) -> bool:
    cell = model.cells[0]
    return cell.candidate_independent or not cell.uses_history


def _stems(studies: Sequence[Study]) -> list[str]:
    """All models: candidate-independent ones first, the best mean AUC over studies on top."""
    scores: dict[str, list[float]] = {}
    kind: dict[str, bool] = {}
    for study in studies:
        for stem, model in study.models.items():
            scores.setdefault(stem, []).append(model.metric("auc").mean or 0.0)
            kind[stem] = _independent(model)
    return sorted(scores, key=lambda s: (not kind[s], -sum(scores[s]) / len(scores[s])))


def _goals(studies: Sequence[Study]) -> str:
    """Whether HiSAC is first among the candidate-independent, and how it stands to DIN."""
    lines = ["## The goal, data set by data set", ""]
    for study in studies:
        models = study.models
        if SHOWN not in models:
            continue
        said = []
        for metric in ("auc", "gauc"):
            rivals = [m for s, m in models.items() if _independent(m) and s != SHOWN]
            best = max(rivals, key=lambda one: one.metric(metric).mean or 0.0)
            of = best.differences[metric]
            word = "first" if (of.estimate.value or 0.0) < 0 else "**not first**"
            said.append(f"{metric.upper()} {word}: {best.name} is {_gap(of)} beside it")
        if "din" in models:
            din = models["din"]
            said.append(f"full-length DIN {_gap(din.differences['auc'])} AUC beside it")
        lines.append(f"- **{study.title}**. " + "; ".join(said) + ".")
    return "\n".join(lines)


def _metric_tables(studies: Sequence[Study]) -> list[str]:
    def cell(metric: str) -> Callable[[Study, str], str]:
        def shown(study: Study, stem: str) -> str:
            model = study.models.get(stem)
            return "-" if model is None else _spread(model.metric(metric), len(model.cells))

        return shown

    tables = []
    for metric in ("auc", "gauc"):
        table = _table(studies, cell(metric))
        tables.append(
            f"## {metric.upper()}, test split\n\n{table}\n\nMean ± sample deviation over seeds "
            "(how many in brackets where not three). Above the line: what a cache can hold per "
            "user; below: methods that read the history for each candidate."
        )
    return tables


def _difference_table(studies: Sequence[Study]) -> str:
    def shown(study: Study, stem: str) -> str:
        model = study.models.get(stem)
        if model is None or not model.differences:
            return "-"
        return f"{_gap(model.differences['auc'])}<br>{_gap(model.differences['gauc'])}"

    stems = [stem for stem in _stems(studies) if stem != SHOWN]
    table = _table(studies, shown, stems)
    return (
        f"## Each method minus HiSAC, same users\n\n{table}\n\nAUC, GAUC below. A star: the 95 % "
        "interval of a paired bootstrap over users excludes zero; a minus sign: HiSAC is ahead."
    )


def _strength_table(study: Study | None) -> str:
    if study is None:
        return ""
    rows = []
    for model in study.summary.models:
        closed = "0 %" if model.closed is None else f"{model.closed.value:.1%}"
        auc = _spread(model.metric("auc"), len(model.cells))
        rows.append(f"| {model.name} | {auc} | {closed} |")
    head = "| method | AUC | of the way to the oracle |\n| --- | ---: | ---: |"
    return (
        "## Where every method's assumption holds\n\nAn interest is a category that the history "
        "shows often, and nothing else decides but an item's quality (study `strength`).\n\n"
        + "\n".join([head, *rows])
    )


def _variants(kind: str, title: str) -> str:
    """All variants of one kind, a table for each data set they were run on."""
    parts = []
    for folder in NAMES:
        study = _read(f"{folder}-{kind}")
        if study is None:
            continue
        rows = ["| variant | AUC | GAUC | minus HiSAC | |\n| --- | ---: | ---: | ---: | ---: |"]
        for model in study.summary.models:
            seeds = len(model.cells)
            found = [_spread(model.metric("auc"), seeds), _spread(model.metric("gauc"), seeds)]
            if model.differences:
                found += [_gap(model.differences["auc"]), _gap(model.differences["gauc"])]
            name = f"**{model.name}**" if not model.differences else model.name
            rows.append(f"| {name} | " + " | ".join([*found, "", ""][:4]) + " |")
        link = f"[report](comparison/{study.folder}/report.md)"
        parts.append(f"{NAMES[folder]} ({link}):\n\n" + "\n".join(rows))
    return f"## {title}\n\n" + "\n\n".join(parts) if parts else ""


def _semantics() -> str:
    """HiSAC on semantic IDs made in several ways, each against the shipped ones."""
    parts = []
    for folder, title in NAMES.items():
        layout = Layout(RESULTS / "comparison" / f"{folder}-semantics")
        if not any(layout.cells.glob("*/*/seed*.json")):
            continue
        ways = {one.data: one.models[0] for one in summarise(layout)}
        rows = [
            "| semantic IDs | AUC | GAUC | minus shipped | |\n| --- | ---: | ---: | ---: | ---: |"
        ]
        for name, way in sorted(ways.items(), key=lambda item: -(item[1].metric("auc").mean or 0)):
            found = [_spread(way.metric(metric), len(way.cells)) for metric in ("auc", "gauc")]
            if name != SHIPPED:
                gaps = differences(way.cells, ways[SHIPPED].cells)
                found += [_gap(gaps["auc"]), _gap(gaps["gauc"])]
            shown = f"**{name}**" if name == SHIPPED else name
            rows.append(f"| {shown} | " + " | ".join([*found, "", ""][:4]) + " |")
        link = f"[report](comparison/{folder}-semantics/report.md)"
        parts.append(f"{title} ({link}):\n\n" + "\n".join(rows))
    head = "## What semantic IDs are made of, in a trained ranker"
    return f"{head}\n\n" + "\n\n".join(parts) if parts else ""


def _table(
    studies: Sequence[Study],
    cell: Callable[[Study, str], str],
    stems: Sequence[str] | None = None,
) -> str:
    names = {stem: m.name for study in studies for stem, m in study.models.items()}
    kinds = {stem: _independent(m) for study in studies for stem, m in study.models.items()}
    lines = [
        "| method | " + " | ".join(study.title for study in studies) + " |",
        "| --- |" + " ---: |" * len(studies),
    ]
    before = True
    for stem in stems or _stems(studies):
        if before and not kinds[stem]:
            lines.append("| *per candidate* |" + " |" * len(studies))
        before = kinds[stem]
        name = f"**{names[stem]}**" if stem == SHOWN else names[stem]
        lines.append(f"| {name} | " + " | ".join(cell(study, stem) for study in studies) + " |")
    return "\n".join(lines)


def _spread(found: Spread, seeds: int) -> str:
    if found.mean is None:
        return "-"
    mean = f"{found.mean:.4f}"
    deviation = "" if found.deviation is None else f" ± {found.deviation:.4f}"
    return f"{mean}{deviation}" + ("" if seeds == 3 else f" ({seeds})")


def _gap(difference: Difference) -> str:
    of = difference.estimate
    if of.value is None:
        return "-"
    return f"{of.value:+.4f}{'*' if of.excludes_zero else ''}"


def _where(studies: Sequence[Study]) -> str:
    """Links to the studies, and what they were made with."""
    lines = ["## The studies", ""]
    for study in studies:
        first = study.summary.first
        lines.append(
            f"- [{study.title}](comparison/{study.folder}/report.md): {first.rows.rows:,} test "
            f"candidates of {first.rows.users:,} users; costs, slices, figures, curves"
        )
    hosts = {
        (cell.host, tuple(cell.versions.items()))
        for s in studies
        for m in s.summary.models
        for cell in m.cells
    }
    for host, versions in sorted(hosts):
        lines += ["", f"{host}; " + ", ".join(f"{name} {number}" for name, number in versions)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
