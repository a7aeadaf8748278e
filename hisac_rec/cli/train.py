"""``hisac-rec train``: train a model file on a prepared data set."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer


def run(
    model: Annotated[str, typer.Argument(help="Model file, or the name of a shipped one.")],
    data: Annotated[Path, typer.Argument(help="Folder of a prepared data set.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    planner: Annotated[
        str | None, typer.Option(help="Planner config, or the name of a shipped one.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan that 'hisac-rec plan' saved.")] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(help="Folder or URL for the checkpoints, such as s3://bucket/run."),
    ] = None,
    warm_start: Annotated[
        str | None,
        typer.Option(help="A run or checkpoint to start from; its data may be another."),
    ] = None,
    warm_start_data: Annotated[
        Path | None, typer.Option(help="The data of that run, where it has moved.")
    ] = None,
    warm_start_optimizer: Annotated[
        bool, typer.Option(help="Take over the optimisers' states as well.")
    ] = False,
    resume: Annotated[bool, typer.Option(help="Go on from the run's last checkpoint.")] = False,
    profile: Annotated[
        bool, typer.Option(help="Record ten steps: a table here, a trace in OUT/profile.")
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key.path=value over the model file.")
    ] = None,
) -> None:
    """Train a model; under torchrun or torchx on as many ranks as there are.

    **Examples**

        hisac-rec train hisac data/ml1m --out runs/hisac

        hisac-rec train models/hisac.toml data/ml1m --out runs/x --set train.epochs=5

        torchrun --nproc_per_node 2 -m hisac_rec train hisac data/ml1m --out runs/two

        hisac-rec train hisac data/ml1m --out runs/x --checkpoints s3://bucket/runs/x

        hisac-rec train hisac data/today --out runs/today --warm-start runs/yesterday
    """
    from hisac_rec.config import load_config
    from hisac_rec.data.contract import PreparedData
    from hisac_rec.doctor import check_stack
    from hisac_rec.errors import UserError
    from hisac_rec.planning.config import PlannerConfig
    from hisac_rec.ranker.config import load_model_config
    from hisac_rec.shipped import find_config

    if plan is not None and planner is not None:
        raise UserError("give --plan or --planner, not both")
    check_stack()
    config = load_model_config(find_config("models", model), set_ or [])
    prepared = PreparedData(data)
    source: Path | PlannerConfig | None = plan
    if planner is not None:
        source = load_config(PlannerConfig, find_config("launch/planners", planner))

    from hisac_rec.checkpoints.location import locate
    from hisac_rec.checkpoints.warm_start import WarmStart
    from hisac_rec.train.distributed import MARGIN, process_group
    from hisac_rec.train.job import open_job
    from hisac_rec.train.run import RunFolder
    from hisac_rec.train.training import train

    warm = None
    if warm_start is not None:
        warm = WarmStart(locate(warm_start), warm_start_data, warm_start_optimizer)
    timeout = timedelta(minutes=config.train.timeout_minutes)
    with process_group(timeout + MARGIN) as ranks:
        job = open_job(config, prepared)
        try:
            train(
                job,
                ranks,
                out,
                plan=source,
                resume=resume,
                profiled=profile,
                checkpoints=checkpoints,
                warm=warm,
            )
        finally:
            if ranks.first:
                RunFolder(out).story().print()
