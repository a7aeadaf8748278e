"""Soft routing: the fused operator equals the plain reference, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.methods.hisac import routing
from hisac_rec.methods.hisac.reference import route, share_out
from hisac_rec.methods.hisac.routing import Frozen, Routing, route_with_mass, soft_route


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def random_case(
    lengths: list[int],
    slots: int,
    *,
    tau: float = 0.5,
    squared: bool = False,
    counted: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Frozen]:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    values = torch.randn(total, 5, generator=generator, dtype=dtype)
    keys = torch.randn(total, 3, generator=generator, dtype=dtype)
    queries = torch.randn(len(lengths), slots, 3, generator=generator, dtype=dtype)
    counts = torch.randint(1, 9, (total,), generator=generator) if counted else None
    return values, Frozen(queries, keys, counts, offsets_of(lengths), tau, squared)


def plain(values: Tensor, frozen: Frozen) -> Tensor:
    """The reference, request by request and slot by slot, each event on its own."""
    requests, slots, _ = frozen.queries.shape
    result = torch.zeros(requests, slots, values.shape[1], dtype=torch.float64)
    for request in range(requests):
        begin, end = frozen.offsets[request : request + 2].tolist()
        if begin == end:
            continue
        keys, rows = frozen.keys[begin:end].tolist(), values[begin:end].tolist()
        for slot in range(slots):
            query = frozen.queries[request, slot].tolist()
            result[request, slot] = torch.tensor(
                route(query, keys, rows, frozen.tau, frozen.squared), dtype=torch.float64
            )
    return result


@pytest.mark.parametrize("chunk", [1, 100, 1 << 24])
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 40]), min_size=1, max_size=5),
    slots=st.integers(1, 4),
    tau=st.sampled_from([0.01, 0.5, 10.0]),
    squared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(
    chunk: int, lengths: list[int], slots: int, tau: float, squared: bool, seed: int
) -> None:
    values, frozen = random_case(lengths, slots, tau=tau, squared=squared, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "CHUNK_ELEMENTS", chunk)
        torch.testing.assert_close(soft_route(values, frozen), plain(values, frozen))


@pytest.mark.parametrize("chunk", [1, 100, 1 << 24])
@pytest.mark.parametrize("way", ["agents", "hard"])
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 15, 17, 40]), min_size=1, max_size=4),
    slots=st.integers(1, 4),
    squared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_sharing_events_out_equals_the_reference(
    chunk: int, way: Routing, lengths: list[int], slots: int, squared: bool, seed: int
) -> None:
    values, frozen = random_case(lengths, slots, squared=squared, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    used = torch.randint(1, slots + 1, (len(lengths),), generator=generator)
    filled = torch.arange(slots) < used[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "CHUNK_ELEMENTS", chunk)
        found, mass = route_with_mass(values, replace(frozen, routing=way, filled=filled))
    torch.testing.assert_close(mass.sum(1), torch.tensor(lengths, dtype=torch.float64))
    # No event is lost: agents weighted by their mass add up to the history.
    parts = [part.sum(0) for part in values.split(lengths)]
    torch.testing.assert_close((found * mass.unsqueeze(-1)).sum(1), torch.stack(parts))
    for request, length in enumerate(lengths):
        rows = slice(int(frozen.offsets[request]), int(frozen.offsets[request]) + length)
        own = filled[request]
        expected = (
            share_out(
                frozen.queries[request, own].tolist(),
                frozen.keys[rows].tolist(),
                values[rows].tolist() or [[0.0] * 5],
                frozen.tau,
                squared,
                hard=way == "hard",
            )
            if length
            else [[0.0] * 5] * int(own.sum())
        )
        torch.testing.assert_close(found[request, own], torch.tensor(expected, dtype=torch.float64))
        assert not found[request, ~own].any()


@pytest.mark.parametrize("way", ["agents", "hard"])
def test_gradient_of_shared_out_values(way: Routing) -> None:
    values, frozen = random_case([4, 0, 19, 1], 3, counted=True)
    values.requires_grad_()
    shared = replace(frozen, routing=way)
    assert torch.autograd.gradcheck(lambda v: soft_route(v, shared), (values,))


@pytest.mark.parametrize("squared", [False, True])
def test_thousands_of_events_in_fp32(squared: bool) -> None:
    values, frozen = random_case([3_000, 0, 1], 2, squared=squared, tau=0.1, dtype=torch.float32)
    found = soft_route(values, frozen)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), plain(values, frozen), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_counted_rows_stand_for_that_many_events(chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(routing, "CHUNK_ELEMENTS", chunk)
    sums, frozen = random_case([3, 0, 20], 2, counted=True)
    assert frozen.counts is not None
    copies = frozen.counts
    lengths = [int(part.sum()) for part in copies.split([3, 0, 20])]
    one_by_one = Frozen(
        frozen.queries,
        frozen.keys.repeat_interleave(copies, 0),
        None,
        offsets_of(lengths),
        frozen.tau,
        frozen.squared,
    )
    mean = (sums / copies.unsqueeze(1)).repeat_interleave(copies, 0)
    torch.testing.assert_close(soft_route(sums, frozen), soft_route(mean, one_by_one))


def test_very_distant_events_do_not_overflow() -> None:
    values, frozen = random_case([50], 2, tau=1e-3)
    far = Frozen(frozen.queries, frozen.keys * 1e3, None, frozen.offsets, 1e-3, True)
    assert soft_route(values, far).isfinite().all()
    torch.testing.assert_close(soft_route(values, far), plain(values, far))


@pytest.mark.parametrize("chunk", [1, 60, 1 << 24])
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("squared", [False, True])
def test_gradient_of_values(chunk: int, counted: bool, squared: bool, monkeypatch) -> None:
    monkeypatch.setattr(routing, "CHUNK_ELEMENTS", chunk)
    values, frozen = random_case([4, 0, 19, 1], 3, squared=squared, counted=counted)
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: soft_route(v, frozen), (values,))


def test_nothing_flows_to_queries_and_keys() -> None:
    values, frozen = random_case([4, 2], 2)
    for tensor in (values, frozen.queries, frozen.keys):
        tensor.requires_grad_()
    soft_route(values, frozen).square().sum().backward()
    assert values.grad is not None
    assert frozen.queries.grad is None
    assert frozen.keys.grad is None


def test_gradient_where_no_request_has_events() -> None:
    values, frozen = random_case([0, 0], 2)
    values.requires_grad_()
    result = soft_route(values, frozen)
    assert result.shape == (2, 2, 5)
    assert not result.any()
    result.sum().backward()
    assert values.grad is not None
    assert values.grad.shape == (0, 5)


def test_autocast_does_not_reach_the_distances() -> None:
    """bf16 has 8 bits: distances computed in it would change which events an agent reads."""
    values, frozen = random_case([40, 3], 2, tau=0.05, dtype=torch.float32)
    values.requires_grad_()
    expected = soft_route(values, frozen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = soft_route(values, frozen)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
    found.float().sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
