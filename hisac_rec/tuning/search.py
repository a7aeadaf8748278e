"""The search: the same number of trials for every model, judged on the validation split alone.

Every rank runs every trial; rank 0 keeps the book and tells the others what comes next.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hisac_rec.checkpoints.saving import Position, first_difference
from hisac_rec.data.contract import PreparedData
from hisac_rec.data.tasks import resolve_tasks
from hisac_rec.errors import UserError
from hisac_rec.evaluation.deciding import deciding, defined_metrics_of, undefined_in_words
from hisac_rec.ranker.build import optional_semantics
from hisac_rec.train.distributed import Ranks
from hisac_rec.train.job import open_job
from hisac_rec.train.training import train
from hisac_rec.tuning.book import Trial, TrialBook
from hisac_rec.tuning.results import ModelResult, write_model, write_summary
from hisac_rec.tuning.space import Search

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """What every model gets.

    Args:
        trials: to be finished for each model, those of earlier calls included.
        seed: of the sampler; the trials' own seed is ``train.seed`` of the model file.
        prune: stop trials that fall below the median of the others.
    """

    trials: int
    seed: int = 0
    prune: bool = True


class HopelessTrial(Exception):  # noqa: N818 - no error: the pruner's word
    """The pruner ends this trial; raised on all ranks alike."""


def tune(
    searches: Sequence[Search], data: PreparedData, ranks: Ranks, out: Path, budget: Budget
) -> list[ModelResult]:
    """Search every model and leave its best model file behind. Called on every rank.

    Reads the training and the validation split, never the test split. A call with the same
    settings goes on from the trials that ``out`` holds.

    Args:
        searches: what is searched, a model each.
        data: the prepared data set.
        ranks: this process.
        out: the folder of the search: ``<model>/best.toml``, ``<model>/trials.csv``,
            ``tuning.md``.
        budget: the same for every model.

    Returns:
        What was found, a model each; empty on other ranks than the first.

    Raises:
        UserError: ``out`` holds a search with other settings, or all trials of a model failed
            (after the other models were searched).
    """
    names = [search.name for search in searches]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two of the models are called '{name}': rename one of the files")
    searches = [_with_defined_metric(search, data) for search in searches]
    settings = [_settings(search, data, budget) for search in searches]
    for search, here in zip(searches, settings, strict=True):
        _check_settings(out / search.name, here)
    dist.barrier()
    results = []
    for search, here in zip(searches, settings, strict=True):
        folder = out / search.name
        if ranks.first:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "settings.json").write_text(json.dumps(here, indent=1))
        result = _tune_model(search, data, ranks, folder, budget)
        if result is not None:
            results.append(result)
            write_summary(out, results, data, budget.trials)
    failed = _from_first(ranks, [result.name for result in results if result.best is None])
    if failed:
        reasons = {result.name: result.rows[0].error for result in results}
        lines = [f"{name}: every trial failed; the first: {reasons.get(name)}" for name in failed]
        raise UserError("\n".join(lines))
    return results


def _with_defined_metric(search: Search, data: PreparedData) -> Search:
    """The search by the metric that the validation labels define, said where it is another one.

    Raises:
        UserError: they define none.
    """
    task = resolve_tasks(search.base.tasks, data.manifest)[0].name
    defined = defined_metrics_of(data, "valid", task)
    found = deciding(defined, search.metric)
    if found is None:
        raise UserError(f"{data.root / 'valid'}: no labelled candidate, so no trial can be judged")
    if found == search.metric:
        return search
    log.warning("%s: %s", search.name, undefined_in_words(defined, search.metric, "valid"))
    train = search.base.train.model_copy(update={"metric": found})
    return replace(search, base=search.base.model_copy(update={"train": train}))


def _tune_model(
    search: Search, data: PreparedData, ranks: Ranks, folder: Path, budget: Budget
) -> ModelResult | None:
    """All trials of one model; the result on rank 0."""
    book = None
    if ranks.first:
        book = TrialBook(folder, search, seed=budget.seed, prune=budget.prune)
    while True:
        trial = _from_first(ranks, book.ask(budget.trials) if book else None)
        if trial is None:
            break
        _run_trial(search, data, ranks, trial, book)
        if book is not None:
            result = ModelResult(search, book.rows())
            write_model(folder, result, data)
            log.info("%s, %s", search.name, result.progress(budget.trials))
    if book is None:
        return None
    result = ModelResult(search, book.rows())
    write_model(folder, result, data)
    return result


def _run_trial(
    search: Search, data: PreparedData, ranks: Ranks, trial: Trial, book: TrialBook | None
) -> None:
    """Train once and write into the book what became of it."""
    started = time.perf_counter()
    metrics: dict[str, float] = {}
    error = ""
    pruned = False
    budget = search.config({}).train
    whole = data.manifest.splits["train"].candidates

    def watch(position: Position, seen: dict[str, float]) -> None:
        stop = False
        value = seen.get(search.metric)
        if book is not None and value is not None:
            spent = budget.is_spent(position.epoch * whole + position.candidates)
            stop = book.report(value, last=spent or position.epoch >= budget.epochs)
        if _from_first(ranks, stop):
            raise HopelessTrial

    try:
        config = search.config(trial.values)
        metrics = train(open_job(config, data), ranks, trial.folder, watcher=watch)
        if search.metric not in metrics:
            error = f"validation {search.metric} is undefined"
    except HopelessTrial:
        pruned = True
    except UserError as failure:
        error = str(failure)
    except torch.OutOfMemoryError as failure:
        if ranks.world_size > 1:  # the other ranks wait for this one: nothing to go on with
            raise
        error = f"out of memory: {str(failure).splitlines()[0]}"
    if error:
        log.warning("%s, trial %d failed: %s", search.name, trial.number, error)
    if book is not None:
        # The weights are not needed: best.toml is trained anew, with as many seeds as wanted.
        shutil.rmtree(trial.folder / "checkpoints", ignore_errors=True)
        book.finish(
            "failed" if error else "pruned" if pruned else "complete",
            seconds=time.perf_counter() - started,
            metrics=metrics,
            error=error,
        )
    dist.barrier()


def _settings(search: Search, data: PreparedData, budget: Budget) -> dict[str, Any]:
    """What must be the same for a search to go on; the number of trials may grow."""
    semantics = optional_semantics(data)
    return {
        "data_fingerprint": data.manifest.fingerprint,
        "semantics_fingerprint": semantics.fingerprint if semantics else "",
        "seed": budget.seed,
        "prune": budget.prune,
        "model": search.base.model_dump(mode="json"),
        "search": {key: one.model_dump(mode="json") for key, one in search.dimensions.items()},
    }


def _check_settings(folder: Path, here: dict[str, Any]) -> None:
    path = folder / "settings.json"
    if not path.is_file():
        return
    try:
        there = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not readable ({error}); choose another --out") from None
    changed = first_difference(there, json.loads(json.dumps(here)))
    if changed:
        raise UserError(
            f"{path}: another search is kept there: {changed} now; go on with the same settings, "
            "or choose another --out"
        )


def _from_first(ranks: Ranks, value: T) -> T:
    """Rank 0's value, on every rank."""
    if ranks.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
