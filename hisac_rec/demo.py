"""The whole way on synthetic data, in one process: what ``make demo`` runs.

Everything is the real thing (prepared Parquet, semantic IDs, TorchRec
``DistributedModelParallel``, exact evaluation); only the data is generated.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

from hisac_rec.config import load_config
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.evaluation.report import distance_closed
from hisac_rec.evaluation.results import Report
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare
from hisac_rec.ranker.config import load_model_config
from hisac_rec.semantic.fit import fit_semantic_ids, resolve_config
from hisac_rec.shipped import find_config
from hisac_rec.train.distributed import Ranks, process_group
from hisac_rec.train.evaluate import evaluate_run, write_predictions
from hisac_rec.train.job import open_job
from hisac_rec.train.run import RunFolder
from hisac_rec.train.training import train

log = logging.getLogger(__name__)

MODELS = ("hisac", "no_history")
"""The model shown, then the floor it is measured against."""


@dataclass(frozen=True)
class DemoResult:
    """What a demo leaves behind.

    Args:
        report: HiSAC beside the floor, the trivial predictors and the oracle.
        closed: share of the distance from the floor's AUC to the oracle's that HiSAC goes.
        folder: where everything was written.
        seconds: wall clock.
    """

    report: Report
    closed: float
    folder: Path
    seconds: float


def run_demo(out: Path, data_overrides: list[str], model_overrides: list[str]) -> DemoResult:
    """Generate, fit, train two models, evaluate.

    Args:
        out: folder for everything; must not exist.
        data_overrides: ``key.path=value`` over ``datasets/synthetic.toml``.
        model_overrides: ``key.path=value`` over both model files.

    Raises:
        UserError: ``out`` exists, or an override is wrong.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out, or remove it first")
    started = time.monotonic()
    log.info("1/4 generating a synthetic data set whose true click probability is known")
    definition = load_config(
        DatasetDefinition, find_config("datasets", "synthetic"), data_overrides
    )
    data = prepare(definition, out / "data")
    with process_group() as ranks:
        log.info("2/4 fitting semantic IDs")
        fit_semantic_ids(data, resolve_config(data, []), ranks.device)
        runs = {}
        for name in MODELS:
            log.info("3/4 training %s on %d %s", name, ranks.world_size, ranks.device.type)
            runs[name] = _train_and_predict(name, data, ranks, out / "runs", model_overrides)
    log.info("4/4 evaluating")
    shown, floor = (runs[name] for name in MODELS)
    floor_name = floor.config().name
    report = evaluate_run(shown, data, against={floor_name: floor})
    names = (shown.config().name, floor_name, "oracle")
    aucs = [report.value(name, "auc") or math.nan for name in names]
    closed = float(distance_closed(aucs[0], aucs[1], aucs[2]))
    return DemoResult(report, closed, out, time.monotonic() - started)


def _train_and_predict(
    name: str, data: PreparedData, ranks: Ranks, runs: Path, overrides: list[str]
) -> RunFolder:
    config = load_model_config(find_config("models", name), overrides)
    run = RunFolder(runs / name)
    train(open_job(config, data), ranks, run.root)
    write_predictions(run, data, ranks)
    return run
