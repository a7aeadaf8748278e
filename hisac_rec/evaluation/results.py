"""What an evaluation found, as typed models: the contents of ``report-<split>.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from hisac_rec.config import Strict
from hisac_rec.errors import UserError, did_you_mean

REPORT_VERSION = 1
ITEM_MEAN, ITEM_AND_USER_MEAN, ORACLE = "item mean", "item + user mean", "oracle"
"""Names of the predictors that every report adds."""
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
    """``report-<split>.json``: everything that one evaluation found."""

    report_version: int = REPORT_VERSION
    data: str
    """Name of the data set."""
    task: str = ""
    """What was evaluated; empty where the data set has one label without a name."""
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
    training: dict[str, float] = {}
    """Metrics of the evaluated model on a sample of training rows; undefined ones are absent."""
    concerns: list[str] = []
    """What is wrong with the model, in words (:mod:`hisac_rec.evaluation.health`)."""

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

    def save(self, folder: str | Path, split: str = "test", task: str = "") -> list[Path]:
        """Write ``report-<split>.json`` and ``.md`` into a folder; returns both paths.

        Args:
            folder: of the run.
            split: what was evaluated.
            task: where it is not the model's main one: ``report-<split>-<task>.json``.
        """
        from hisac_rec.evaluation.table import markdown

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        json_name, markdown_name = report_names(split, task)
        texts = {json_name: self.model_dump_json(indent=1), markdown_name: markdown(self)}
        for name, text in texts.items():
            temporary = target / f".{name}.tmp"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(target / name)
        return [target / name for name in texts]

    @classmethod
    def load(cls, path: str | Path, split: str = "test") -> Report:
        """Read a report's JSON file, or the one of a split in a folder.

        Raises:
            UserError: it is not there or is not a report of this release.
        """
        file = Path(path) / report_names(split)[0] if Path(path).is_dir() else Path(path)
        try:
            return cls.model_validate(json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"{file}: no such report; run 'hisac-rec evaluate' first") from None
        except (ValidationError, ValueError) as error:
            raise UserError(f"{file}: not a report of this release ({error})") from None


def report_names(split: str, task: str = "") -> tuple[str, str]:
    """Names of a split's report in a run folder: JSON, Markdown."""
    name = f"report-{split}-{task}" if task else f"report-{split}"
    return f"{name}.json", f"{name}.md"
