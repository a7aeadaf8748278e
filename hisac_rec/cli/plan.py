"""``hisac-rec plan``: where every embedding table would go on a cluster, without the cluster."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hisac_rec.planning.plan_io import Plan
    from hisac_rec.train.job import Job

log = logging.getLogger(__name__)

_AS_IF = "Plan as if the data had"


def run(
    model: Annotated[str, typer.Argument(help="Model file, or the name of a shipped one.")],
    data: Annotated[Path, typer.Argument(help="Folder of a prepared data set; a sample will do.")],
    planner: Annotated[
        str, typer.Option("--planner", "-p", help="Planner config, or the name of a shipped one.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Save the plan here, as JSON.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option("--compare", help="Another planner config, shown beside the first."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="Draw what each rank holds, as .png, .svg or .pdf."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the model file."),
    ] = None,
    planner_set: Annotated[
        list[str] | None,
        typer.Option("--planner-set", metavar="KEY=VALUE", help="... of the planner config."),
    ] = None,
    requests_per_rank: Annotated[
        int | None,
        typer.Option(min=1, help="Requests a step on one rank; default: from [loader]."),
    ] = None,
    items: Annotated[int | None, typer.Option(min=1, help=f"{_AS_IF} this many items.")] = None,
    users: Annotated[int | None, typer.Option(min=1, help=f"{_AS_IF} this many users.")] = None,
    history: Annotated[
        float | None, typer.Option(min=0.001, help=f"{_AS_IF} histories of this mean length.")
    ] = None,
    candidates: Annotated[
        float | None, typer.Option(min=0.001, help=f"{_AS_IF} this many candidates a request.")
    ] = None,
) -> None:
    """Plan the sharding of a model's tables, print it as a table and save it.

    Needs neither a GPU nor the cluster: tables stay without memory, lengths come from the data
    set's statistics. `train --plan` runs a saved plan on a cluster of that size, with that data.

    For example:

        hisac-rec plan hisac data/syn --planner 2xcpu --out plan.json

        hisac-rec plan hisac data/syn -p 2xcpu --planner-set 'defaults.sharding_types=["row_wise"]'

        hisac-rec plan hisac data/syn -p 128xh100 --items 1000000000 --history 10000

        hisac-rec plan hisac data/syn -p 8xh100 --compare 128xh100 --picture plan.png
    """
    from rich.console import Console

    from hisac_rec.config import load_config
    from hisac_rec.data.contract import PreparedData
    from hisac_rec.planning.config import PlannerConfig
    from hisac_rec.planning.picture import draw_plan
    from hisac_rec.planning.side_by_side import compare_plans
    from hisac_rec.planning.table import WIDTH, plan_table
    from hisac_rec.ranker.config import load_model_config
    from hisac_rec.shipped import find_config
    from hisac_rec.train.job import open_job
    from hisac_rec.train.job import requests_per_rank as mean_requests

    if log.getEffectiveLevel() > logging.DEBUG:  # TorchRec tells every proposal
        logging.getLogger("torchrec").setLevel(logging.WARNING)
    config = load_model_config(find_config("models", model), set_ or [])
    cluster = load_config(PlannerConfig, find_config("launch/planners", planner), planner_set or [])
    job = _as_if(
        open_job(config, PreparedData(data)),
        sizes={"items": items, "users": users},
        lengths={"history_length_mean": history, "candidates_mean": candidates},
    )

    def plan_for(cluster: PlannerConfig) -> Plan:
        requests = requests_per_rank or mean_requests(job, cluster.topology.world_size)
        return job.plan(cluster, requests)

    plan = plan_for(cluster)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(plan_table(plan), soft_wrap=not console.is_terminal)
    if compare is not None:
        other = load_config(PlannerConfig, find_config("launch/planners", compare))
        shown = compare_plans([plan, plan_for(other)], [planner, compare])
        console.print(shown, soft_wrap=not console.is_terminal)
    if picture is not None:
        draw_plan(plan, picture)
        log.info("picture written to %s", picture)
    if out is not None:
        plan.save(out)
        log.info("plan written to %s", out)


def _as_if(job: Job, sizes: dict[str, int | None], lengths: dict[str, float | None]) -> Job:
    """The job as it would be on data of other sizes (manifest) or lengths (stats)."""
    from copy import copy
    from dataclasses import replace

    from hisac_rec.ranker.build import ranker_schema

    data = copy(job.data)
    data.manifest = data.manifest.model_copy(
        update={key: value for key, value in sizes.items() if value is not None}
    )
    data.stats = job.data.stats.model_copy(
        update={key: value for key, value in lengths.items() if value is not None}
    )
    schema = ranker_schema(job.config, data, job.semantics)
    return replace(job, data=data, schema=schema)
