"""Operations and bytes of history methods, against counts made by hand."""

from __future__ import annotations

import pytest
import torch
from training import small_config

from hisac_rec.compare import cost
from hisac_rec.compare.cost import OperationCounter, history_costs, memory_bytes
from hisac_rec.data.contract import PreparedData
from hisac_rec.methods.parts.agents import AgentMemory
from hisac_rec.train.job import open_job

DIM = 8


def test_products_and_elements_are_counted() -> None:
    a, b = torch.randn(5, 7), torch.randn(7, 3)
    with OperationCounter() as counted:
        c = a @ b
        c.t().relu()  # a view is free, the relu handles 15 elements
        c.sum()  # reads 15
    assert (counted.products, counted.elements) == (2 * 5 * 7 * 3, 30)
    assert counted.total == 240


def test_attention_and_distances_are_products() -> None:
    q, k = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 9, 4)
    mask = torch.zeros(1, 1, 6, 9)
    with OperationCounter() as counted:
        torch.nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=mask)
    assert counted.products == 2 * 2 * (2 * 6 * 9 * 4)
    with OperationCounter() as counted:
        torch.cdist(torch.randn(30, 4), torch.randn(40, 4))
    assert counted.products >= 2 * 30 * 40 * 4


def test_a_gather_costs_what_it_takes() -> None:
    table, rows = torch.randn(1000, 8), torch.tensor([3, 5])
    with OperationCounter() as counted:
        table.index_select(0, rows)
    assert counted.elements == 16


def test_bytes_of_a_memory() -> None:
    vectors = torch.zeros(1, 4, DIM)
    memory = AgentMemory(vectors, torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 4))
    assert memory_bytes(memory) == 4 * DIM * 4 + 4 + 4 * 4
    assert memory_bytes((memory, {"again": vectors}, None)) == memory_bytes(memory)


def costs_of(data: PreparedData, *changes: str) -> dict[int, cost.Cost]:
    job = open_job(small_config(*changes), data)
    return {one.length: one for one in history_costs(job)}


def test_pooling_grows_with_the_history_and_its_memory_does_not(small_data: PreparedData) -> None:
    found = costs_of(small_data, 'history={method = "mean"}')
    assert set(found) == set(cost.LENGTHS)
    assert found[10_000].compress / found[1_000].compress == pytest.approx(10, rel=0.05)
    assert found[1_000].compress >= 1_000 * DIM
    assert {one.memory_bytes for one in found.values()} == {4 * DIM}
    assert {one.read_candidate for one in found.values()} == {DIM}


def test_agents_are_bounded(small_data: PreparedData) -> None:
    found = costs_of(small_data)
    assert found[10_000].memory_bytes == found[1_000].memory_bytes <= 6 * (4 * DIM + 1 + 4 + 8)
    assert found[10_000].read_candidate == found[1_000].read_candidate > 2 * DIM * DIM
    assert found[10_000].compress > found[1_000].compress


def test_a_cut_history_costs_the_same_at_every_length(small_data: PreparedData) -> None:
    found = costs_of(
        small_data, 'history={method = "recent", events = 20}', "inputs.max_history=50"
    )
    assert {one.events for one in found.values()} == {50}
    assert len({(one.compress, one.read_candidate) for one in found.values()}) == 1
    assert found[100].memory_bytes == 20 * (4 * DIM + 1)


def test_what_is_not_affordable_is_left_out(
    small_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooled = 'history={method = "mean"}'
    needed = costs_of(small_data, pooled)[10_000].compress
    monkeypatch.setattr(cost, "MAX_OPERATIONS", needed / 2)
    assert set(costs_of(small_data, pooled)) == {100, 1_000}
    monkeypatch.setattr(cost, "MAX_OPERATIONS", needed * 2)
    assert set(costs_of(small_data, pooled)) == {100, 1_000, 10_000}
