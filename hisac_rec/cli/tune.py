"""``hisac-rec tune``: search hyper-parameters, the same budget for every model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    models: Annotated[list[str], typer.Argument(help="Model files, or the names of shipped ones.")],
    data: Annotated[Path, typer.Option(help="Folder of a prepared data set.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the search.")],
    trials: Annotated[int, typer.Option(min=1, help="Trials of each model.")] = 20,
    space: Annotated[
        str, typer.Option(help="Common search space: a file, or the name of a shipped one.")
    ] = "common",
    seed: Annotated[int, typer.Option(min=0, help="Seeds what is tried.")] = 0,
    prune: Annotated[
        bool, typer.Option(help="Stop a trial that falls below the median of the others.")
    ] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key.path=value over every model file; not searched then."),
    ] = None,
) -> None:
    """Search each model's hyper-parameters on the validation split; the test split is not read.

    The common keys of --space and the method's own keys. The first trial is the model file
    as it is. The same command goes on where an earlier one stopped; more --trials add to it.
    Ends with OUT/MODEL/best.toml, a complete model file, and OUT/tuning.md.

    **Examples**

        hisac-rec tune hisac recent50 no_history --data data/ml1m --trials 20 --out tuned/ml1m

        hisac-rec train tuned/ml1m/hisac/best.toml data/ml1m --out runs/hisac

        hisac-rec tune hisac --data data/ml1m --out tuned/x --set train.epochs=2
    """
    from hisac_rec.config import load_config
    from hisac_rec.data.contract import PreparedData
    from hisac_rec.doctor import check_stack
    from hisac_rec.shipped import find_config
    from hisac_rec.tuning.space import SearchSpace, open_search

    check_stack()
    path = find_config("models/search", space)
    common = load_config(SearchSpace, path)
    found = [find_config("models", model) for model in models]
    searches = [open_search(model, common, set_ or [], str(path)) for model in found]
    prepared = PreparedData(data)

    from hisac_rec.train.distributed import process_group
    from hisac_rec.tuning.results import print_results
    from hisac_rec.tuning.search import Budget, tune

    with process_group() as ranks:
        results = tune(searches, prepared, ranks, out, Budget(trials, seed, prune))
    if results:
        print_results(results)
        typer.echo(f"Written to {out}: tuning.md, and best.toml and trials.csv of each model")
