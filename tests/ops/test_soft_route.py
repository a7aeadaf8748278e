"""Soft routing: every backend equals the plain reference, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.methods.hisac.reference import route, share_out
from hisac_rec.ops.soft_route import (
    Frozen,
    Routing,
    fused,
    op,
    padded,
    route_with_mass,
    soft_route,
    stream,
)

ONE_AT_A_TIME = ("padded", 1), ("padded", 100), ("padded", 1 << 24)
STREAMED = ("stream", 1), ("stream", 1 << 18)
EXACT = [*ONE_AT_A_TIME, *STREAMED]
"""Backends and how many scores they hold at a time; all of them compute in the inputs' type."""


@contextmanager
def computed_by(name: str, scores: int) -> Iterator[None]:
    """Let one backend do all routing."""
    backend = {"padded": padded, "stream": stream, "fused": fused}[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, "choose_backend", lambda *_: backend)
        patch.setattr(padded, "CHUNK_ELEMENTS", scores)
        patch.setattr(stream, "BUFFER_ELEMENTS", scores)
        patch.setattr(stream, "LEAST_ROWS", 3)
        yield


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


@pytest.mark.parametrize("backend", EXACT)
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 40]), min_size=1, max_size=5),
    slots=st.integers(1, 4),
    tau=st.sampled_from([0.01, 0.5, 10.0]),
    squared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(
    backend: tuple[str, int],
    lengths: list[int],
    slots: int,
    tau: float,
    squared: bool,
    seed: int,
) -> None:
    values, frozen = random_case(lengths, slots, tau=tau, squared=squared, seed=seed)
    with computed_by(*backend):
        torch.testing.assert_close(soft_route(values, frozen), plain(values, frozen))


@pytest.mark.parametrize("backend", ONE_AT_A_TIME)
@pytest.mark.parametrize("way", ["agents", "hard"])
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 15, 17, 40]), min_size=1, max_size=4),
    slots=st.integers(1, 4),
    squared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_sharing_events_out_equals_the_reference(
    backend: tuple[str, int],
    way: Routing,
    lengths: list[int],
    slots: int,
    squared: bool,
    seed: int,
) -> None:
    values, frozen = random_case(lengths, slots, squared=squared, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    used = torch.randint(1, slots + 1, (len(lengths),), generator=generator)
    filled = torch.arange(slots) < used[:, None]
    with computed_by(*backend):
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


@pytest.mark.parametrize("backend", ["padded", "stream", "fused"])
@pytest.mark.parametrize("squared", [False, True])
def test_thousands_of_events_in_fp32(backend: str, squared: bool) -> None:
    values, frozen = random_case([3_000, 0, 1], 2, squared=squared, tau=0.1, dtype=torch.float32)
    with computed_by(backend, 1 << 12):
        found = soft_route(values, frozen)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), plain(values, frozen), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", EXACT)
def test_counted_rows_stand_for_that_many_events(backend: tuple[str, int]) -> None:
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
    with computed_by(*backend):
        torch.testing.assert_close(soft_route(sums, frozen), soft_route(mean, one_by_one))


@pytest.mark.parametrize("nearest", [0.5 * stream.FAR, 0.99 * stream.FAR, 1.01 * stream.FAR, 300.0])
def test_rows_that_come_ever_nearer(nearest: float) -> None:
    """The first rows lie ``nearest`` temperatures off and more, the last ones on the agent."""
    values, frozen = random_case([60], 1, tau=1.0, dtype=torch.float32)
    keys = frozen.queries[0] + torch.tensor([1.0, 0.0, 0.0]) * torch.linspace(
        nearest + 1, 0, 60
    ).unsqueeze(1)
    case = replace(frozen, keys=keys)
    wanted = values.double().requires_grad_()
    expected = torch.softmax(-torch.cdist(frozen.queries[0].double(), keys.double()), 1) @ wanted
    (slope,) = torch.autograd.grad(expected.sum(), wanted)
    values.requires_grad_()
    with computed_by("stream", 1):
        found = soft_route(values, case)
        (gradient,) = torch.autograd.grad(found.sum(), values)
    torch.testing.assert_close(found[0].double(), expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("squared", [False, True])
def test_the_loops_of_fp32_equal_the_operators_of_fp64(counted: bool, squared: bool) -> None:
    values, frozen = random_case(
        [70, 0, 3, 200, 40, 1], 3, squared=squared, counted=counted, dtype=torch.float32, seed=2
    )
    exact = replace(frozen, queries=frozen.queries.double(), keys=frozen.keys.double())
    wanted = values.double().requires_grad_()
    values.requires_grad_()
    with computed_by("stream", 64):
        expected, found = soft_route(wanted, exact), soft_route(values, frozen)
        (slope,) = torch.autograd.grad(expected.square().sum(), wanted)
        (gradient,) = torch.autograd.grad(found.square().sum(), values)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("squared", [False, True])
def test_rounding_of_far_rows_in_fp32_makes_no_weight_infinite(squared: bool) -> None:
    """Norms of 1e6 at a temperature of 1e-3: a distance's rounding is many temperatures."""
    values, frozen = random_case([50], 4, tau=1e-3, squared=squared, dtype=torch.float32)
    far = replace(frozen, queries=frozen.queries * 1e3, keys=frozen.keys * 1e3)
    with computed_by("stream", 64):
        found = soft_route(values, far)
    assert found.isfinite().all()
    assert found.abs().max() <= values.abs().max() * 1.001  # a mean of values


@pytest.mark.parametrize("backend", ["padded", "stream"])
def test_very_distant_events_do_not_overflow(backend: str) -> None:
    values, frozen = random_case([50], 2, tau=1e-3)
    far = Frozen(frozen.queries, frozen.keys * 1e3, None, frozen.offsets, 1e-3, True)
    with computed_by(backend, 64):
        found = soft_route(values, far)
    assert found.isfinite().all()
    torch.testing.assert_close(found, plain(values, far))


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("squared", [False, True])
def test_gradient_of_values(backend: tuple[str, int], counted: bool, squared: bool) -> None:
    values, frozen = random_case([4, 0, 19, 1], 3, squared=squared, counted=counted)
    values.requires_grad_()
    with computed_by(*backend):
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


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 16, 63, 64, 65, 140]), min_size=1, max_size=4),
    slots=st.sampled_from([1, 3, 64, 70]),
    counted=st.booleans(),
    squared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_kernels_equal_plain_torch(
    lengths: list[int], slots: int, counted: bool, squared: bool, seed: int
) -> None:
    """On a GPU where there is one, else under Triton's interpreter."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values, frozen = random_case(
        lengths, slots, counted=counted, squared=squared, dtype=torch.float32, seed=seed
    )
    gradient = torch.randn(len(lengths), slots, values.shape[1])
    values, gradient, frozen = values.to(device), gradient.to(device), moved(frozen, device)
    expected, found = padded.forward(values, frozen), fused.forward(values, frozen)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        fused.backward(gradient, expected.highest, frozen),
        padded.backward(gradient, expected.highest, frozen),
        rtol=1e-4,
        atol=1e-4,
    )


def test_kernels_take_half_precision() -> None:
    """16 bits in, fp32 within: as far from fp32 as the rounding of the result."""
    # Triton's interpreter has no bf16.
    device, half = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.half)
    values, frozen = random_case([90, 0, 40], 5, dtype=torch.float32)
    rounded = [one.to(half) for one in (frozen.queries, frozen.keys, values)]
    exact = [one.float() for one in rounded]
    coarse = moved(replace(frozen, queries=rounded[0], keys=rounded[1]), device)
    fine = moved(replace(frozen, queries=exact[0], keys=exact[1]), device)
    found = fused.forward(rounded[2].to(device), coarse)
    assert found.vectors.dtype == half
    expected = padded.forward(exact[2].to(device), fine)
    torch.testing.assert_close(found.vectors.float(), expected.vectors, rtol=1e-2, atol=1e-2)
    gradient = torch.randn_like(expected.vectors).to(half)
    torch.testing.assert_close(
        fused.backward(gradient, expected.highest, coarse).float(),
        padded.backward(gradient.float(), expected.highest, fine),
        rtol=1e-2,
        atol=1e-2,
    )


@pytest.mark.parametrize("routing", ["events", "agents", "hard"])
@pytest.mark.parametrize("lengths", [[4, 0, 19], [300, 280]])
def test_the_operator_keeps_its_promises(lengths: list[int], routing: Routing) -> None:
    """Schema, fake tensors, autograd registration and AOT dispatch, by torch's own checker."""
    values, frozen = random_case(lengths, 3, counted=True)
    frozen = replace(frozen, routing=routing)
    arguments = op._arguments(frozen)
    torch.library.opcheck(op._soft_route, (values, *arguments))
    torch.library.opcheck(op._soft_route, (values.requires_grad_(), *arguments))


def test_compiles_without_a_graph_break() -> None:
    values, frozen = random_case([4, 0, 19], 3)

    def loss(rows: Tensor) -> Tensor:
        return soft_route(rows * 2, frozen).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(values), loss(values))


@pytest.mark.parametrize(
    ("device", "lengths", "routing", "expected"),
    [
        ("cpu", [300, 400], "events", stream),
        ("cpu", [30, 40], "events", padded),
        ("cpu", [300, 400], "hard", padded),
        ("cuda", [30, 40], "events", fused),
        ("cuda", [30, 40], "agents", padded),
    ],
)
def test_backends_by_device_and_size(
    device: str, lengths: list[int], routing: Routing, expected: object
) -> None:
    _, frozen = random_case(lengths, 2)
    frozen = replace(frozen, routing=routing)
    assert op.choose_backend(torch.device(device), frozen) is expected


def moved(frozen: Frozen, device: str) -> Frozen:
    counts = None if frozen.counts is None else frozen.counts.to(device)
    return replace(
        frozen,
        queries=frozen.queries.to(device),
        keys=frozen.keys.to(device),
        offsets=frozen.offsets.to(device),
        counts=counts,
    )
