"""``tables.pool``: what is summed where the rows are trains the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import write_prepared
from training import one_process, small_config

from hisac_rec.data.assemble import BatchAssembler
from hisac_rec.data.contract import Feature, PreparedData
from hisac_rec.data.loader import RequestBatches
from hisac_rec.errors import UserError
from hisac_rec.planning.model_tables import model_tables
from hisac_rec.train.job import open_job, resolve_plan, shard

POOLED = ("tables.pool=true", "tables.pool_min_rows=1")

MODELS = [
    (),
    ("history.newest=4", "ranker.recent=2"),
    ("history.reach=2", "history.tail_agents=2", "history.vote_half_life=8.0"),
    ("history.routing=agents", "ranker.recent=0"),
    ("ranker.age_buckets=0", "inputs.user=[]", 'inputs.candidate=["id"]'),
    ('history={method="mean"}', 'inputs.history=["id", "*"]'),
    ('tables.vocabulary.item={kind="hashed",rows=40,hashes=2}',),
]


def losses(data: PreparedData, *overrides: str) -> list[float]:
    """Of five steps over the first batches, the last of them without training."""
    found = []
    with one_process() as ranks:
        job = open_job(small_config("train.sparse_optimizer=adagrad", *overrides), data)
        model = shard(job, resolve_plan(job, ranks, None), ranks)
        batches = RequestBatches(job.data, "train", job.spec, job.items, job.config.loader)
        for _, batch in zip(range(5), batches, strict=False):
            loss, _ = model(batch.with_loss_scale(1.0 / batch.num_candidates))
            loss.backward()
            found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("overrides", MODELS, ids=str)
def test_trains_the_same(small_data: PreparedData, overrides: tuple[str, ...]) -> None:
    """Five steps of the sparse optimiser, whose every gradient enters the next loss."""
    apart = losses(small_data, *overrides)
    pooled = losses(small_data, *POOLED, *overrides)
    assert apart[0] != apart[-1]
    np.testing.assert_allclose(pooled, apart, rtol=2e-5)


def test_lists_of_values(tmp_path: Path) -> None:
    """A multi-valued feature gives its mean, in a bag as beside it."""
    features = [Feature(name="tags", rows=5, multi=True), Feature(name="brand", rows=4)]
    data = write_prepared(tmp_path, items=20, item_features=features)
    keys = ('history={method="mean"}', 'inputs.history=["id", "*"]', 'inputs.candidate=["*"]')
    dense = losses(data, *keys)
    np.testing.assert_allclose(losses(data, *POOLED, *keys), dense, rtol=2e-5)
    (tmp_path / "vocab").mkdir()
    values = pa.table({"id": range(5), "value": [None, "red", "green", "blue", "grey"]})
    pq.write_table(values, tmp_path / "vocab/tags.parquet")
    keys = (*keys, 'tables.vocabulary.tags={kind="hashed",rows=4,hashes=2}')
    hashed = losses(data, *keys)
    assert hashed[-1] != dense[-1]
    np.testing.assert_allclose(losses(data, *POOLED, *keys), hashed, rtol=2e-5)


def test_small_tables_are_read_row_by_row(
    small_data: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    """Items come as sums and codes as rows: the same model again."""
    keys = ("tables.pool=true", "tables.pool_min_rows=100")
    job = open_job(small_config(*keys), small_data)
    assert job.spec.pooled() == {"item"}
    np.testing.assert_allclose(losses(small_data, *keys), losses(small_data), rtol=2e-5)
    assert "changes nothing" not in caplog.text
    assert not open_job(small_config("tables.pool=true"), small_data).spec.pooled()
    assert "no table that events read has tables.pool_min_rows = 10,000 rows" in caplog.text


def test_a_rank_without_data_takes_part(small_data: PreparedData) -> None:
    with one_process() as ranks:
        job = open_job(small_config(*POOLED), small_data)
        model = shard(job, resolve_plan(job, ranks, None), ranks)
        loss, (_, logits) = model(BatchAssembler(job.spec, job.items).empty())
        loss.backward()
        assert len(logits) == 0
        assert float(loss) == 0
        dense = [p for name, p in model.named_parameters() if ".head." in f".{name}"]
        assert dense
        assert all(p.grad is not None for p in dense)


def test_tables_that_events_read_are_read_by_bags(small_data: PreparedData) -> None:
    job = open_job(small_config(*POOLED), small_data)
    tables = {table.name: table.path for table in model_tables(job.unsharded())}
    read = {name for name, path in tables.items() if path == "bags"}
    assert read == {"item", "sid1", "sid2"}
    assert {"user", "category", "prefix2"} < tables.keys()


def test_the_plan_counts_sums_and_ids(small_data: PreparedData) -> None:
    """What a request asks for is measured: its groups, its newest events, its candidates."""
    job = open_job(small_config(*POOLED, "ranker.recent=3"), small_data)
    batch = next(iter(RequestBatches(job.data, "train", job.spec, job.items, job.config.loader)))
    groups = torch.unique(
        torch.repeat_interleave(batch.history_offsets.diff()) * 1000
        + batch.history_codes[:, 0] * 6
        + batch.history_codes[:, 1]
    )
    singles = int(batch.history_offsets.diff().clamp_max(3).sum())
    bags = (len(groups) + singles + batch.num_candidates) / batch.num_requests
    traffic = job.bag_traffic()
    assert traffic.bags == pytest.approx(bags)
    with one_process() as ranks:
        plan = resolve_plan(job, ranks, None)
    planned = {name: table.pooling_factors for _, name, table in plan.tables()}
    # A leaf's code is one id however many events share it; items are met more often.
    assert planned["sid1"] == pytest.approx([traffic.ids["sid1"]], rel=1e-6)
    assert bags - 1e-6 <= traffic.ids["sid1"] < traffic.ids["item"] <= batch.bags.values().numel()


@pytest.mark.parametrize("history", ['{method="din"}', '{method="hisac", semantics="vectors"}'])
def test_methods_that_read_events_one_by_one_say_so(small_data: PreparedData, history: str) -> None:
    with pytest.raises(UserError, match=r"tables\.pool = true: .*reads events one by one"):
        open_job(small_config(*POOLED, f"history={history}"), small_data)


def test_reach_goes_with_routing_by_leaves(small_data: PreparedData) -> None:
    with pytest.raises(UserError, match="reach needs routing = 'events'"):
        small_config("history.reach=2", "history.routing=hard")
