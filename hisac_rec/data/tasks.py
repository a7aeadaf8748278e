"""Several labels of one candidate: which of a data set's tasks a model learns.

A data set has a main task, the label of ``[requests]``, and maybe further ones
(``[requests.tasks]``). The model file says which of them train (:class:`TaskConfig`); together
with the manifest that gives the :class:`Task` list of the ``InputSpec``, the model's own main
task first. Loader, ranker, evaluation and scorer are all built from that list.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, model_validator

from hisac_rec.config import Strict
from hisac_rec.data.contract import Manifest, label_field
from hisac_rec.errors import UserError, did_you_mean

ALL = "*"


class TaskConfig(Strict):
    """``[tasks]`` of a model file: which tasks of the data set train, with a tower each."""

    train: list[str] | None = Field(default=None, min_length=1)
    """Names of tasks; "*" stands for all of the data set that are not named, its main task
    first. The first one is the model's main task: it chooses checkpoints and is what ``score``
    means. Unset: the data set's main task alone."""
    weights: dict[str, float] = {}
    """Task -> weight of its loss in the sum; 1 where it is not named."""
    over_layers: dict[str, list[int]] = {}
    """Task -> hidden layers of its tower; those of ``ranker.over_layers`` where it is not named."""

    @model_validator(mode="after")
    def _sensible(self) -> TaskConfig:
        for name, weight in self.weights.items():
            if weight <= 0:
                raise ValueError(
                    f"weights.{name} = {weight:g}: expected more than 0; leave a task that is not "
                    "to be learned out of train"
                )
        return self


@dataclass(frozen=True)
class Task:
    """One task of a model.

    Args:
        name: as the definition calls it.
        field: of a request, that holds its labels.
        masked: candidates may be without this label (nan): it does not apply to them.
        weight: of its loss.
        over_layers: hidden layers of its tower; None: as ``ranker.over_layers``.
    """

    name: str
    field: str
    masked: bool = False
    weight: float = 1.0
    over_layers: tuple[int, ...] | None = None


MAIN = Task("label", "labels")
"""The only task of a data set that names none."""


def resolve_tasks(config: TaskConfig, manifest: Manifest) -> tuple[Task, ...]:
    """The model's tasks, its main one first.

    Raises:
        UserError: the data set has no such task, or one is named twice.
    """
    there = manifest.task_names
    given = [there[0]] if config.train is None else config.train
    named = [name for name in given if name != ALL]
    for key, names in (
        ("train", named),
        ("weights", list(config.weights)),
        ("over_layers", list(config.over_layers)),
    ):
        for name in names:
            if name not in there:
                raise UserError(
                    f"tasks.{key}: the data set '{manifest.name}' has no task '{name}'"
                    f"{did_you_mean(name, there)}; it has: {', '.join(there)}. Tasks are made in "
                    "[requests.tasks] of its definition"
                )
    chosen: list[str] = []
    for name in given:
        chosen += [n for n in there if n not in {*named, *chosen}] if name == ALL else [name]
    for name in named:
        if chosen.count(name) > 1:
            raise UserError(f"tasks.train: '{name}' is named twice")
    for key in ("weights", "over_layers"):
        for name in getattr(config, key):
            if name not in chosen:
                raise UserError(
                    f"tasks.{key}: '{name}' does not train: add it to tasks.train, or leave its "
                    f"{key} out"
                )
    layers = config.over_layers
    return tuple(
        Task(
            name,
            label_field(name, manifest),
            masked=name != there[0],
            weight=config.weights.get(name, 1.0),
            over_layers=tuple(layers[name]) if name in layers else None,
        )
        for name in chosen
    )


def are_plain(tasks: tuple[Task, ...], manifest: Manifest) -> bool:
    """Whether this is the data set's main task alone, as before there were others."""
    return [task.name for task in tasks] == [manifest.task]


def training_rate(task: Task, manifest: Manifest) -> float:
    """Mean label of a task's training candidates, in (0, 1): half of one of each class is added."""
    if task.name == manifest.task:
        counts = manifest.splits["train"]
        positives, labelled = counts.positives, counts.candidates
    else:
        further = next(one for one in manifest.tasks if one.name == task.name)
        positives, labelled = further.positives.get("train", 0.0), further.labelled.get("train", 0)
    return (positives + 0.5) / (labelled + 1.0)
