from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hisac_rec.planning.table import (
    plan_table,
    rank_bytes,
    rank_ms,
    rank_parts,
    shorten_ranks,
    weight_bytes,
)
from hisac_rec.planning.units import human_bytes


def rendered(plan) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(plan_table(plan))
    return out.getvalue()


def test_the_table_shows_every_table_and_the_load_of_the_ranks(plan_small):
    plan = plan_small("8xh100", 'defaults.sharding_types=["row_wise"]')
    text = rendered(plan)
    assert "1 host x 8 cuda, 4 requests per rank" in text
    item = next(line for line in text.splitlines() if line.strip().startswith("item"))
    for cell in ("101 x 16", "fp32", "6.3 KiB", "row_wise", "0-7", "7"):
        assert cell in item
    assert "semantic" in text
    assert "fp16" in text
    hbm = next(line for line in text.splitlines() if line.strip().startswith("HBM"))
    assert "63.2 GiB" in hbm
    assert "(rank 0)" in hbm
    assert "ms a step" in text


def test_ddr_is_what_cpu_ranks_have(plan_small):
    text = rendered(plan_small("2xcpu"))
    ddr = next(line for line in text.splitlines() if line.strip().startswith("DDR"))
    assert "2.0 GiB" in ddr  # 8 GiB, two ranks, half kept free
    assert "HBM" not in text


def test_loads_add_up(plan_small):
    plan = plan_small("2xcpu", 'defaults.sharding_types=["table_wise"]')
    shards = [shard for _, _, table in plan.tables() for shard in table.shards]
    assert sum(rank_bytes(plan, "ddr")) == sum(shard.ddr_bytes for shard in shards)
    assert rank_bytes(plan, "hbm") == [0, 0]
    assert sum(rank_ms(plan)) == pytest.approx(sum(shard.step_ms for shard in shards))


def test_weight_bytes_know_the_type(plan_small):
    plan = plan_small("1xcpu")
    assert weight_bytes(plan.modules["trained"]["item"]) == 101 * 16 * 4
    assert weight_bytes(plan.modules["frozen"]["semantic"]) == 101 * 8 * 2


@given(st.sets(st.integers(0, 40), min_size=1))
def test_shortened_ranks_name_exactly_the_ranks(ranks):
    named: list[int] = []
    for part in shorten_ranks([*ranks, *ranks]).split(","):
        low, _, high = part.partition("-")
        named += range(int(low), int(high or low) + 1)
    assert named == sorted(ranks)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (80 * 2**30, "80.0 GiB")],
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text


def test_the_time_of_a_step_is_the_sum_of_its_parts(plan_small):
    plan = plan_small("8xh100")
    for rank, whole in enumerate(rank_ms(plan)):
        assert sum(rank_parts(plan, rank).values()) == pytest.approx(whole)
    text = rendered(plan)
    assert "backward: gradients sent" in text
    assert "most expensive tables, of the time of all ranks: '" in text


def test_least_and_most_name_their_ranks(plan_small):
    plan = plan_small("2xcpu", 'defaults.sharding_types=["table_wise"]')
    load = rank_bytes(plan, "ddr")
    assert load[0] != load[1]
    ddr = next(line for line in rendered(plan).splitlines() if line.strip().startswith("DDR"))
    for value in (min(load), max(load)):
        assert f"{human_bytes(value)} (rank {load.index(value)})" in ddr
    assert f"{max(load) / (sum(load) / 2):.2f}" in ddr
    weights = next(line for line in rendered(plan).splitlines() if "of it weights" in line)
    held = [
        sum(s.weight_bytes for _, _, t in plan.tables() for s in t.shards if s.rank == rank)
        for rank in (0, 1)
    ]
    assert human_bytes(max(held)) in weights


def test_replicas_tell_what_an_average_moves(plan_small):
    groups = ("topology.hosts=2", "topology.sharding_group=8", "topology.sync_every=3")
    rules = 'defaults.sharding_types=["row_wise"]'
    plan = plan_small("8xh100", rules, *groups, optimizer="rowwise_adagrad")
    trained = plan.modules["trained"].values()
    moved = sum(t.shards[0].weight_bytes + t.shards[0].state_bytes for t in trained)
    text = rendered(plan)
    assert "2 replicas of 8 ranks, the table above is of one: " in text
    assert f"averaging them moves {human_bytes(moved)} per rank" in text
    assert "every 3 steps" in text
