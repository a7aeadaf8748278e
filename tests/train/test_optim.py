"""The schedule of learning rates, and what the optimisers start from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import one_process, small_config

from hisac_rec.data.contract import PreparedData
from hisac_rec.train.config import TrainConfig
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers, learning_rate_factor


def config(**keys: object) -> TrainConfig:
    return TrainConfig(**{"warmup_steps": 0, "decay": "none", "final_lr": 0.1} | keys)  # type: ignore[arg-type]


def test_warm_up_is_linear_over_steps() -> None:
    warm = config(warmup_steps=4)
    found = [learning_rate_factor(step, 0.0, warm) for step in range(6)]
    assert found == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_warm_up_takes_no_more_than_a_tenth_of_a_short_training() -> None:
    unset = config(warmup_steps=None)
    long = [learning_rate_factor(step, step / 5_000, unset) for step in (0, 49, 99, 100)]
    assert long == pytest.approx([0.01, 0.5, 1.0, 1.0])
    short = [learning_rate_factor(step, step / 40, unset) for step in (0, 2, 4, 5)]
    assert short == pytest.approx([0.01, 0.5, 1.0, 1.0])


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("none", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.55, 0.1, 0.1]),
        ("cosine", [1.0, 0.55, 0.1, 0.1]),
    ],
)
def test_decay_over_progress(decay: str, expected: list[float]) -> None:
    found = [learning_rate_factor(9, p, config(decay=decay)) for p in (0.0, 0.5, 1.0, 1.7)]
    assert found == pytest.approx(expected)


def test_cosine_is_flat_at_both_ends() -> None:
    quarter = learning_rate_factor(9, 0.25, config(decay="cosine", final_lr=0.0))
    assert quarter == pytest.approx(0.5 + 0.5 * 2**-0.5)


@given(
    step=st.integers(0, 1_000),
    progress=st.floats(0, 2),
    warmup=st.none() | st.integers(0, 50),
    decay=st.sampled_from(["none", "linear", "cosine"]),
    final=st.floats(0, 1),
)
def test_the_factor_is_a_share(
    step: int, progress: float, warmup: int | None, decay: str, final: float
) -> None:
    keys = config(warmup_steps=warmup, decay=decay, final_lr=final)
    factor = learning_rate_factor(step, progress, keys)
    assert 0 <= factor <= 1
    steps = 100 if warmup is None else warmup
    later = learning_rate_factor(step + steps, progress + 0.1, keys)
    if step >= steps:
        assert later <= factor + 1e-12


def test_fresh_optimisers_touch_nothing(small_data: PreparedData) -> None:
    """States exist, so that a checkpoint can be loaded into them; weights are as they were."""
    keys = small_config("train.dense_weight_decay=0.5", "train.warmup_steps=10")
    with one_process() as ranks:
        job = open_job(keys, small_data)
        model = shard(job, resolve_plan(job, ranks, None), ranks)
        before = {k: v.clone() for k, v in model.named_parameters() if ".embeddings." not in k}
        optimizers = Optimizers(model, keys.train)
        for name, value in model.named_parameters():
            if name in before:
                assert torch.equal(value, before[name]), name
        state = optimizers.state()
        assert state["dense"].keys() == before.keys()
        for tensors in state["dense"].values():
            assert float(tensors["step"]) == 0
            assert not tensors["exp_avg"].any()
        assert state["sparse"]
        optimizers.set_progress(0, 0.0)
        assert optimizers.factor == pytest.approx(0.1)
        for optimizer, rate in (
            (optimizers.dense, keys.train.dense_lr),
            (optimizers.sparse, keys.train.sparse_lr),
        ):
            for group in optimizer.param_groups:
                assert group["lr"] == pytest.approx(0.1 * rate)


def test_frozen_tables_leave_no_entry_in_the_state(small_data: PreparedData) -> None:
    """The ranks that do not hold the table would not know of it, nor would a checkpoint."""
    keys = small_config("history.semantics=vectors")
    with one_process() as ranks:
        job = open_job(keys, small_data)
        model = shard(job, resolve_plan(job, ranks, None), ranks)
        assert "vectors" in dict(model.module.named_children())
        sparse = Optimizers(model, keys.train).state()["sparse"]
    assert sparse
    assert all(sparse.values())
    assert not any("vector" in name for name in sparse)
