"""``hisac-rec train``: train a model file on a prepared data set."""

from __future__ import annotations

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

    from hisac_rec.train.distributed import process_group
    from hisac_rec.train.job import open_job
    from hisac_rec.train.trainer import train

    with process_group() as ranks:
        train(open_job(config, prepared), ranks, out, plan=source, resume=resume, profiled=profile)
