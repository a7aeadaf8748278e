"""``hisac-rec evaluate``: exact metrics of a trained run on a split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def run(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    data: Annotated[
        Path | None, typer.Option(help="The prepared data set, where it has moved.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="best, last, or a step.")] = "best",
    against: Annotated[
        list[Path] | None, typer.Option(help="Another run to show beside it; may be repeated.")
    ] = None,
    planner: Annotated[
        str | None, typer.Option(help="Planner config, or the name of a shipped one.")
    ] = None,
    draws: Annotated[int, typer.Option(min=0, help="Bootstrap draws over users.")] = 200,
    task: Annotated[
        str | None, typer.Option(help="One task of a model that has learned several; else all.")
    ] = None,
) -> None:
    """Predict a split and report AUC, GAUC, logloss and calibration with intervals.

    Always beside the item's mean label and item mean plus user mean, sliced by history
    length, popularity and item age. Other runs given with --against must have been
    evaluated on the same split before. A model of several tasks gets a report for each.

    **Examples**

        hisac-rec evaluate runs/hisac

        hisac-rec evaluate runs/hisac --against runs/no_history --split valid

        torchrun --nproc_per_node 2 -m hisac_rec evaluate runs/hisac
    """
    from hisac_rec.cli.trained import cluster, open_run, require_split
    from hisac_rec.data.tasks import resolve_tasks
    from hisac_rec.errors import UserError, did_you_mean
    from hisac_rec.evaluation.table import print_report, print_tasks
    from hisac_rec.train.run import RunFolder

    require_split(split)
    folder, prepared = open_run(run_folder, data)
    others = {other.config().name: other for other in map(RunFolder, against or [])}
    where = cluster(planner)
    learned = [t.name for t in resolve_tasks(folder.config().tasks, prepared.manifest)]
    if task is not None and task not in learned:
        raise UserError(
            f"--task {task}: {run_folder} has not learned it{did_you_mean(task, learned)}"
        )

    from hisac_rec.train.distributed import process_group
    from hisac_rec.train.evaluate import evaluate_run, evaluate_tasks, write_predictions

    with process_group() as ranks:
        write_predictions(
            folder,
            prepared,
            ranks,
            split=split,  # type: ignore[arg-type]
            checkpoint=checkpoint,
            planner=where,
        )
        first = ranks.first
    if first:
        how: dict[str, Any] = {"split": split, "against": others, "draws": draws}
        if task is not None:
            print_report(evaluate_run(folder, prepared, task=task, **how))
            return
        reports = evaluate_tasks(folder, prepared, **how)
        print_report(reports[0])
        if len(reports) > 1:
            print_tasks(reports)
