"""Exact metrics of a split during training, over all ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch.distributed as dist
from torch import Tensor

from hisac_rec.data.batch import RequestBatch
from hisac_rec.evaluation.metrics import auc, gauc, logloss
from hisac_rec.evaluation.predictions import sigmoid


def validate(predictions: Iterator[tuple[RequestBatch, Tensor]]) -> dict[str, float]:
    """AUC, GAUC and logloss over the predictions of all ranks; the same on every rank.

    Exact over the whole set: nothing is binned or averaged over batches. Gathers 12 bytes
    a candidate on rank 0.
    """
    labels: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    users: list[np.ndarray] = []
    for batch, predicted in predictions:
        user = batch.request_rows[:, 0].repeat_interleave(batch.candidate_offsets.diff())
        labels.append(batch.labels.numpy())
        logits.append(predicted.numpy())
        users.append(user.numpy().astype(np.int32))
    arrays = (labels, logits, users)
    mine: list[np.ndarray] = [np.concatenate(part) if part else np.zeros(0) for part in arrays]
    first = dist.get_rank() == 0
    gathered: list[list[np.ndarray]] | None = (
        [[] for _ in range(dist.get_world_size())] if first else None
    )
    dist.gather_object(mine, gathered, dst=0)
    result: list[dict[str, float] | None] = [None]
    if gathered is not None:
        label, logit, who = (np.concatenate(parts) for parts in zip(*gathered, strict=True))
        result = [
            {
                "auc": auc(label, logit),
                "gauc": gauc(label, logit, who),
                "logloss": logloss(label, sigmoid(logit)),
                "candidates": float(len(label)),
            }
        ]
    dist.broadcast_object_list(result, src=0)
    if result[0] is None:
        raise RuntimeError("rank 0 sent no metrics")
    return result[0]
