"""``tables.pool``: what is summed where the rows are trains the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import random_rows, write_prepared
from training import one_process, small_config

from hisac_rec.data.assemble import BatchAssembler
from hisac_rec.data.contract import Feature, PreparedData
from hisac_rec.data.loader import RequestBatches
from hisac_rec.errors import UserError
from hisac_rec.planning.model_tables import model_tables
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.pooling import bytes_saved

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


LONG = (
    'history={method="mean"}',
    'inputs.history=["id"]',
    'inputs.candidate=["id"]',
    "tables.dim=32",
)


@pytest.fixture(scope="module")
def long_data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Histories of hundreds of items out of thousands, hardly one of them twice."""
    rows = {
        split: random_rows(np.random.default_rng(seed), 12, 3_000, max_history=900)
        for seed, split in enumerate(("train", "valid", "test"))
    }
    return write_prepared(tmp_path_factory.mktemp("long"), items=3_000, rows=rows)


@pytest.mark.parametrize(
    ("keys", "pools"),
    [
        (("tables.pool_min_rows=1000",), True),
        (("tables.pool_min_rows=1000", "tables.pool=false"), False),
        ((), False),  # 3,000 rows are few
        (("tables.pool_min_rows=1000", 'history={method="din"}'), False),  # reads events
    ],
    ids=str,
)
def test_left_out_it_is_chosen_where_it_sends_less(
    long_data: PreparedData, keys: tuple[str, ...], pools: bool
) -> None:
    job = open_job(small_config(*LONG, *keys), long_data)
    assert job.config.tables.pool is pools  # what a run keeps is a choice made
    assert bool(job.spec.pooled()) is pools


def test_what_sums_save_is_counted(long_data: PreparedData) -> None:
    keys = (*LONG, "tables.pool=true", "tables.pool_min_rows=1000")
    job = open_job(small_config(*keys), long_data)
    found = bytes_saved(job.config, job.schema, long_data, job.items)
    apart = open_job(small_config(*LONG), long_data)
    first, same = (
        next(iter(RequestBatches(of.data, "train", of.spec, of.items, of.config.loader)))
        for of in (job, apart)
    )
    histories = same.history_rows.split(same.history_offsets.diff().tolist())
    of_request = [len(part.unique()) for part in histories]
    rows = len(same.history_items) * (8 + 2 * 4 * 32)
    assert first.num_requests == same.num_requests > 3
    assert found == pytest.approx(rows / (sum(of_request) * 12 + len(of_request) * 2 * 4 * 32))


def test_repeated_items_are_better_sent_as_rows(small_data: PreparedData) -> None:
    """150 items, met by every request: a row each is less than a sum for every leaf."""
    assert open_job(small_config("tables.pool_min_rows=1"), small_data).config.tables.pool is False
