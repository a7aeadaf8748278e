"""Exact metrics of a split during training, over all ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch.distributed as dist
from torch import Tensor

from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.tasks import MAIN, Task
from hisac_rec.evaluation.metrics import defined_metrics


def validate(
    predictions: Iterator[tuple[RequestBatch, Tensor]], tasks: tuple[Task, ...] = (MAIN,)
) -> dict[str, float]:
    """AUC, GAUC and logloss over the predictions of all ranks; the same on every rank.

    Exact over the whole set: nothing is binned or averaged over batches. Gathers 12 bytes
    a candidate on rank 0, and 8 more for each further task.

    Args:
        predictions: batches and their logits, [N], or [N, K] of K > 1 tasks.
        tasks: whose logits they are. Of the first one the metrics go by their plain names, of
            the others they are ``<task>/auc`` and so on.

    Returns:
        The metrics that are defined, the number of labelled candidates and, where there are some,
        their mean label ("rate").
    """
    labels: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    users: list[np.ndarray] = []
    for batch, predicted in predictions:
        user = batch.request_rows[:, 0].repeat_interleave(batch.candidate_offsets.diff())
        of_tasks = [batch.labels, *(batch.tasks[task.name] for task in tasks[1:])]
        labels.append(np.stack([label.numpy() for label in of_tasks], axis=1))
        logits.append(predicted.numpy().reshape(len(user), len(tasks)))
        users.append(user.numpy().astype(np.int32))
    arrays = (labels, logits, users)
    none = (np.zeros((0, len(tasks))), np.zeros((0, len(tasks))), np.zeros(0))
    mine: list[np.ndarray] = [
        np.concatenate(part) if part else empty for part, empty in zip(arrays, none, strict=True)
    ]
    first = dist.get_rank() == 0
    gathered: list[list[np.ndarray]] | None = (
        [[] for _ in range(dist.get_world_size())] if first else None
    )
    dist.gather_object(mine, gathered, dst=0)
    result: list[dict[str, float] | None] = [None]
    if gathered is not None:
        label, logit, who = (np.concatenate(parts) for parts in zip(*gathered, strict=True))
        found = _metrics(label[:, 0], logit[:, 0], who)
        for place, task in enumerate(tasks[1:], start=1):
            own = _metrics(label[:, place], logit[:, place], who)
            found |= {f"{task.name}/{k}": v for k, v in own.items()}
        result = [found]
    dist.broadcast_object_list(result, src=0)
    if result[0] is None:
        raise RuntimeError("rank 0 sent no metrics")
    return result[0]


def _metrics(label: np.ndarray, logit: np.ndarray, user: np.ndarray) -> dict[str, float]:
    """Of the candidates that have a label."""
    labelled = label[~np.isnan(label)]
    found = defined_metrics(label, logit, user) | {"candidates": float(len(labelled))}
    return found | ({"rate": float(labelled.mean())} if len(labelled) else {})
