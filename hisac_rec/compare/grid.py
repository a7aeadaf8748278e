"""Which cells a comparison has, checked before the first one runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hisac_rec.compare.cell import Task, identity
from hisac_rec.compare.cells import Cell, Layout, read, what_changed
from hisac_rec.config import parse_override
from hisac_rec.data.contract import PreparedData, Split
from hisac_rec.errors import UserError, did_you_mean
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.ranker.build import build_ranker
from hisac_rec.ranker.config import ModelConfig, load_model_config
from hisac_rec.shipped import find_config
from hisac_rec.train.job import open_job

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grid:
    """The cells of a comparison.

    Args:
        tasks: those to run, in order.
        done: how many are finished already.
    """

    tasks: list[Task]
    done: int


def load_models(models: Sequence[str], overrides: Sequence[str]) -> dict[str, ModelConfig]:
    """Model files by their stem, all with the same overrides.

    Raises:
        UserError: no such file or key, two models of one name, or an override of the seed.
    """
    for text in overrides:
        if parse_override(text)[0] == ["train", "seed"]:
            raise UserError(f"--set {text}: the comparison sets the seeds; say --seeds instead")
    found: dict[str, ModelConfig] = {}
    for given in models:
        path = find_config("models", given)
        config = load_model_config(path, list(overrides))
        if path.stem in found:
            raise UserError(f"two models are called '{path.stem}'; rename one of the files")
        same = [stem for stem, other in found.items() if other.name == config.name]
        if same:
            raise UserError(
                f"{path}: name = '{config.name}' is also the name of model '{same[0]}'; "
                "give each a name of its own"
            )
        found[path.stem] = config
    return found


def open_data(folders: Sequence[Path]) -> dict[str, PreparedData]:
    """Prepared data sets by the name of their folder.

    Raises:
        UserError: no prepared data there, or two folders of one name.
    """
    found: dict[str, PreparedData] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in found:
            raise UserError(
                f"--data {folder}: another data set is called '{name}' too; rename the folder"
            )
        found[name] = PreparedData(folder.resolve())
        found[name].manifest  # noqa: B018  # refused now and not by the first cell
    return found


def check_baseline(baseline: str | None, names: dict[str, str]) -> None:
    """Refuse a baseline that is no model.

    Args:
        baseline: as given.
        names: stem -> name in tables.

    Raises:
        UserError: names the nearest.
    """
    valid = {*names, *names.values()}
    if baseline is not None and baseline not in valid:
        raise UserError(
            f"--baseline {baseline}: is none of the models{did_you_mean(baseline, valid)}"
        )


def make_grid(
    layout: Layout,
    models: dict[str, ModelConfig],
    data: dict[str, PreparedData],
    *,
    seeds: int,
    split: Split,
    draws: int,
    planner: PlannerConfig | None = None,
    redo: bool = False,
) -> Grid:
    """The cells that are not finished, after every model was built once for every data set.

    Args:
        layout: of the comparison.
        models: of :func:`load_models`.
        data: of :func:`open_data`.
        seeds: how many; they are 0, 1, ...
        split: what is predicted.
        draws: bootstrap draws over users.
        planner: where tables go; None for the devices that are there.
        redo: run again what was made with another configuration or other data.

    Raises:
        UserError: a model does not fit a data set, or a finished cell was made with another
            configuration or other data; names what changed.
    """
    tasks: list[Task] = []
    done = 0
    for data_name, prepared in data.items():
        for model, config in models.items():
            try:
                job = open_job(config, prepared)
                build_ranker(config, job.schema, "meta")
            except UserError as error:
                raise UserError(f"model '{model}' on data '{data_name}': {error}") from None
            for seed in range(seeds):
                path = layout.cell(data_name, model, seed)
                task = Task(
                    data_name=data_name,
                    data=prepared.root,
                    model=model,
                    config=with_seed(config, seed),
                    split=split,
                    draws=draws,
                    planner=planner,
                    run=layout.run(data_name, model, seed).resolve(),
                    cell=path.resolve(),
                    reference=layout.reference(data_name).resolve(),
                )
                if not path.is_file():
                    tasks.append(task)
                    continue
                changed = what_changed(read(path, Cell).identity, identity(task, job))
                if changed and not redo:
                    raise UserError(
                        f"{path}: was made otherwise: {changed} now. Go on with the old settings, "
                        "choose another --out, or run such cells again with --redo"
                    )
                if changed:
                    log.info("%s: again, for %s now", task.name, changed)
                    tasks.append(task)
                else:
                    done += 1
    return Grid(tasks, done)


def with_seed(config: ModelConfig, seed: int) -> ModelConfig:
    """The same model with another ``train.seed``."""
    train = config.train.model_copy(update={"seed": seed})
    return config.model_copy(update={"train": train})
