"""What an evaluation found, as typed models: the contents of ``report.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from hisac_rec.config import Strict
from hisac_rec.errors import UserError, did_you_mean

REPORT_VERSION = 1
Kind = Literal["model", "trivial", "oracle"]


class Estimate(Strict):
    """A number with its interval; None where it is not defined."""

    value: float | None
    """On all rows."""
    low: float | None = None
    """Lower end of the bootstrap interval."""
    high: float | None = None
    """Upper end."""

    @property
    def excludes_zero(self) -> bool:
        """True where the whole interval lies on one side of zero."""
        if self.low is None or self.high is None:
            return False
        return self.low > 0 or self.high < 0


class PredictorReport(Strict):
    """One predictor on all rows."""

    name: str
    kind: Kind
    metrics: dict[str, Estimate]
    """Metric -> value and interval; the names are ``metrics.METRICS``."""
    differences: dict[str, Estimate] | None
    """Metric -> this predictor minus the baseline, paired; None for the baseline."""
    distance_closed: Estimate | None
    """Share of the AUC distance from baseline to oracle; None where that is not defined."""


class SliceValues(Strict):
    """One predictor on one bucket; None where the bucket holds one class."""

    auc: float | None
    gauc: float | None
    logloss: float | None


class SliceReport(Strict):
    """One bucket of one slicing."""

    axis: str
    """``history_length``, ``item_popularity`` or ``item_age``."""
    bucket: str
    rows: int
    users: int
    positive_rate: float
    predictors: dict[str, SliceValues]


class Report(Strict):
    """``report.json``: everything that one evaluation found."""

    report_version: int = REPORT_VERSION
    data: str
    """Name of the data set."""
    fingerprint: str
    """Fingerprint of the prepared data."""
    rows: int
    users: int
    requests: int
    positive_rate: float
    left_out_users: int
    """Users with one class only, who have no AUC and no part in GAUC."""
    left_out_rows: int
    """Rows of those users."""
    draws: int
    """Bootstrap draws over users; 0: no intervals."""
    seed: int
    confidence: float
    baseline: str
    """The predictor that differences are taken to."""
    predictors: list[PredictorReport]
    """The models first, as given; then the trivial ones; then the oracle where known."""
    slices: list[SliceReport]

    def predictor(self, name: str) -> PredictorReport:
        """The predictor of that name.

        Raises:
            UserError: there is none; names the nearest.
        """
        found = {predictor.name: predictor for predictor in self.predictors}
        if name not in found:
            raise UserError(f"no predictor '{name}' in the report{did_you_mean(name, found)}")
        return found[name]

    def value(self, name: str, metric: str = "auc") -> float | None:
        """One metric of one predictor, on all rows."""
        return self.predictor(name).metrics[metric].value

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``report.json`` and ``report.md`` into a folder; returns both paths."""
        from hisac_rec.evaluation.table import markdown

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        texts = {"report.json": self.model_dump_json(indent=1), "report.md": markdown(self)}
        for name, text in texts.items():
            temporary = target / f".{name}.tmp"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(target / name)
        return [target / name for name in texts]

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a ``report.json``, or the one in a folder.

        Raises:
            UserError: it is not there or is not a report of this release.
        """
        file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
        try:
            return cls.model_validate(json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"{file}: no such report; run 'hisac-rec evaluate' first") from None
        except (ValidationError, ValueError) as error:
            raise UserError(f"{file}: not a report of this release ({error})") from None
