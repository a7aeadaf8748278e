"""``hisac-rec compare``: many models on many data sets over several seeds, and their report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

log = logging.getLogger(__name__)


def run(
    models: Annotated[
        list[str] | None, typer.Argument(help="Model files, or names of shipped ones.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder of a prepared data set; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the comparison.")] = Path(
        "results"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... of every model.")] = 3,
    baseline: Annotated[
        str | None,
        typer.Option(help="Model that differences are taken to; else the one without history."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key.path=value over every model file.")
    ] = None,
    split: Annotated[str, typer.Option(help="test or valid.")] = "test",
    draws: Annotated[int, typer.Option(min=0, help="Bootstrap draws over users.")] = 200,
    planner: Annotated[
        str | None, typer.Option(help="Planner config, or the name of a shipped one.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time.")] = 1,
    ranks: Annotated[int, typer.Option(min=1, help="Processes of each cell.")] = 1,
    redo: Annotated[
        bool, typer.Option(help="Run again cells made with other settings or data.")
    ] = False,
    keep_runs: Annotated[
        bool, typer.Option(help="Keep checkpoints, predictions and logs.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option(help="Train nothing: write the report of the cells that are there.")
    ] = False,
) -> None:
    """Train and evaluate every model on every data set with several seeds; write a report.

    Goes on where it stopped: a cell (data set, model, seed) that is done is skipped, one
    that fails does not stop the others. The report (report.md, report.html,
    results.parquet) is made from OUT/cells alone, which is small enough to be committed.

    **Examples**

        hisac-rec compare hisac no_history --data data/ml1m --out results/first

        hisac-rec compare models/*.toml --data data/a --data data/b --seeds 3 --out results/x

        hisac-rec compare --report-only --out results/x --baseline hisac
    """
    from hisac_rec.compare.budget import budget_differences, budget_lines
    from hisac_rec.compare.cells import Layout
    from hisac_rec.compare.grid import check_baseline, load_models, make_grid, open_data
    from hisac_rec.compare.report import print_summaries, write_report
    from hisac_rec.compare.run import run_grid
    from hisac_rec.config import load_config
    from hisac_rec.doctor import check_stack
    from hisac_rec.errors import UserError, did_you_mean
    from hisac_rec.planning.config import PlannerConfig
    from hisac_rec.shipped import find_config

    layout = Layout(out)
    failed: list[str] = []
    if report_only:
        if models or data:
            raise UserError("--report-only takes neither models nor --data: it reads --out alone")
    else:
        if not models or not data:
            raise UserError("name at least one model and one --data (or say --report-only)")
        if split not in ("test", "valid"):
            valid = ("test", "valid")
            raise UserError(f"--split {split}: no such split{did_you_mean(split, valid)}")
        check_stack()
        configs = load_models(models, set_ or [])
        check_baseline(baseline, {stem: config.name for stem, config in configs.items()})
        where = None
        if planner is not None:
            where = load_config(PlannerConfig, find_config("launch/planners", planner))
        grid = make_grid(
            layout,
            configs,
            open_data(data),
            seeds=seeds,
            split=split,  # type: ignore[arg-type]
            draws=draws,
            planner=where,
            redo=redo,
        )
        tables = {config.name: config.model_dump(mode="json") for config in configs.values()}
        for line in budget_lines(budget_differences(tables)):
            log.warning("the models differ in %s", line)
        failed = run_grid(grid, jobs=jobs, ranks=ranks, keep_runs=keep_runs)
        if failed and not any(layout.cells.glob("*/*/seed*.json")):
            _stop(layout.cells, failed)
    print_summaries(write_report(layout, baseline))
    log.info("written to %s", out / "report.md")
    if failed:
        _stop(layout.cells, failed)


def _stop(cells: Path, failed: list[str]) -> None:
    for name in failed:
        log.error("failed: %s; see %s", name, cells / f"{name}.error")
    raise typer.Exit(1)
