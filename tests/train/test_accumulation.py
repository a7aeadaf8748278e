"""Gradients of several batches in one dense step (``train.accumulate``)."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor
from training import one_process, small_config

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import Batches, make_pipeline, steps

STILL = (
    "train.clip_norm=0",
    "train.warmup_steps=0",
    "train.decay=none",
    'train.sparse_optimizer="sgd"',
    "train.sparse_lr=1e-30",
)
"""Tables that do not move and gradients that nobody cuts: only the dense part learns."""


def run(data: PreparedData, count: int, *overrides: str) -> list[tuple[list[Tensor], list[Tensor]]]:
    """(gradients, weights) of the dense part after each of the first ``count`` batches."""
    job = open_job(small_config(*STILL, *overrides), data)
    with one_process() as ranks:
        model = shard(job, resolve_plan(job, ranks, None), ranks)
        optimizers = Optimizers(model, job.config.train)
        pipeline = make_pipeline(model, optimizers, ranks, job.config.train.accumulate)
        weights = [w for w in optimizers.dense.params.values() if isinstance(w, torch.nn.Parameter)]
        feeder = Batches(job, ranks).train(0)
        return [
            (
                [w.grad.clone() if w.grad is not None else torch.zeros_like(w) for w in weights],
                [w.detach().clone() for w in weights],
            )
            for _ in islice(steps(pipeline, feeder), count)
        ]


def test_a_group_of_batches_makes_one_step_with_their_mean_gradient(
    small_data: PreparedData,
) -> None:
    alone = run(small_data, 4, "train.dense_lr=1e-30")
    grouped = run(small_data, 4, "train.accumulate=2")
    mean = [(a + b) / 2 for a, b in zip(alone[0][0], alone[1][0], strict=True)]
    assert any(float(gradient.abs().max()) > 1e-4 for gradient in mean)
    torch.testing.assert_close(grouped[1][0], mean)
    weights = [step[1] for step in grouped]
    first = alone[0][1]  # as good as the initial ones
    torch.testing.assert_close(weights[0], first)
    assert _differ(weights[1], first)
    assert not _differ(weights[2], weights[1])
    assert _differ(weights[3], weights[2])


def test_a_group_that_the_data_cuts_short_makes_a_step_too(small_data: PreparedData) -> None:
    every = run(small_data, 10_000, "train.accumulate=1000000")
    assert not _differ(every[-2][1], every[0][1])
    assert _differ(every[-1][1], every[0][1])


def test_weights_are_kept_between_groups_alone() -> None:
    with pytest.raises(UserError, match=r"checkpoint_every = 10 is no multiple of accumulate = 4"):
        small_config("train.accumulate=4", "train.checkpoint_every=10")


def _differ(some: list[Tensor], others: list[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(some, others, strict=True))
