"""Write docs/results/honesty.md from the committed cells and a person's words.

Legend of the tables: AUC / GAUC, the mean over seeds, on the test split; calibration is the sum of
the probabilities over that of the labels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hisac_rec.compare.cells import Cell, Layout, Reference, read
from hisac_rec.evaluation.results import ITEM_AND_USER_MEAN, ITEM_MEAN

NOTES = Path("docs/results/notes/honesty.md")
PAGE = Path("docs/results/honesty.md")
TITLES = {
    "sets": "Five real sets at the default settings",
    "before": "The same before: codes of all users, three passes, the best by AUC",
    "coins": "Labels by a fair coin",
    "sparse": "Sparse catalogues: most test items are new",
    "events": "Dislikes in the history",
}
HEADER = [
    "model",
    "seeds",
    "AUC",
    "GAUC",
    "logloss",
    "calibration",
    "AUC on training rows",
    "seconds",
]


def write_page(out: Path) -> None:
    """The page of all groups that have cells.

    Args:
        out: folder of the groups' comparisons.
    """
    parts = [NOTES.read_text(encoding="utf-8").strip()]
    for group, title in TITLES.items():
        layout = Layout(out / group)
        cells = list(layout.read_cells()) if layout.cells.is_dir() else []
        if not cells:
            continue
        parts.append(f"## {title}")
        for data in sorted({cell.data for cell in cells}):
            own = [cell for cell in cells if cell.data == data]
            reference = layout.reference(data)
            parts.append(_table(data, own, read(reference, Reference)))
        days = sorted({cell.date for cell in cells})
        versions = ", ".join(f"{name} {of}" for name, of in sorted(cells[0].versions.items()))
        parts.append(f"Measured {days[0]} to {days[-1]} on {cells[0].host}; {versions}.")
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _table(data: str, cells: list[Cell], reference: Reference) -> str:
    """All models on one data set, then the predictors that know no history."""
    lines = [f"### {data}", "", _line(HEADER), _line(["---", *["---:"] * (len(HEADER) - 1)])]
    for model in sorted({cell.model for cell in cells}, key=lambda m: (m != "hisac", m)):
        own = [cell for cell in cells if cell.model == model]
        scores = [cell.scores.metrics for cell in own]
        means = [_mean([of[name] for of in scores]) for name in ("auc", "gauc", "logloss")]
        calibration = _mean([of["calibration"] for of in scores], 2)
        trained = _mean([cell.on_training.get("auc") for cell in own])
        seconds = f"{np.mean([cell.training.seconds for cell in own]):.0f}"
        lines.append(_line([model, str(len(own)), *means, calibration, trained, seconds]))
    for name in (ITEM_MEAN, ITEM_AND_USER_MEAN):
        found = reference.predictors[name].metrics
        shown = [_mean([found[of]]) for of in ("auc", "gauc", "logloss")]
        lines.append(_line([name, "", *shown, _mean([found["calibration"]], 2), "", ""]))
    return "\n".join(lines)


def _mean(values: list[float | None], digits: int = 4) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.{digits}f}" if known else "-"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
