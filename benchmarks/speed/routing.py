"""Soft routing against the machine's matrix product, and against the forms people write."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.speed.measure import (
    SGEMM_OPERATIONS,
    Figure,
    Topic,
    figure,
    sgemm,
    take_turns,
)
from hisac_rec.data.bags import FrozenEvents
from hisac_rec.methods.hisac.leaf_geometry import CodeWords
from hisac_rec.methods.hisac.leaf_routing import route_leaves
from hisac_rec.methods.hisac.leaves import path_vectors
from hisac_rec.methods.hisac.tree import TreeRules
from hisac_rec.methods.hisac.voting import to_slots
from hisac_rec.ops.rows import group_rows, sum_rows
from hisac_rec.ops.soft_route import Frozen, soft_route

AGENTS, WIDTH, TAU = 200, 64, 0.5
SHAPES = {2_000: 16, 10_000: 4}
"""Events a request, and how many requests."""
CODES, KEEP = 200, (20, 10)
"""Of the paper's two levels; at most 200 agents."""


def drawn_paths(requests: int, length: int) -> Tensor:
    """[requests x length] leaf of each event, in CODES x CODES. Interests: a user has 25 branches
    of 16 leaves, the k-th of all as likely as 1/k.
    """
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> Tensor:
        return torch.randperm(CODES, generator=generator)[:count]

    likely = 1.0 / torch.arange(1, 401, dtype=torch.float64)
    drawn = []
    for _ in range(requests):
        leaves = torch.cat([branch * CODES + some(16) for branch in some(25)])
        leaves = leaves[torch.randperm(len(leaves), generator=generator)]
        rank = torch.multinomial(likely, length, replacement=True, generator=generator)
        drawn.append(leaves[rank])
    return torch.cat(drawn)


@dataclass(frozen=True)
class Case:
    """Requests of the same length, which is where padding costs nothing.

    Legend: R requests, L events of each, K agents, s = d = 64.
    """

    values: Tensor
    frozen: Frozen
    requests: int
    length: int

    @property
    def operations(self) -> int:
        """Of the two matrix products alone: distances and weighted sums."""
        return 2 * self.requests * self.length * AGENTS * (WIDTH + WIDTH)


def make_case(requests: int, length: int) -> Case:
    """Normal vectors at distances of about one, as normalised semantic vectors have them."""
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> Tensor:
        return functional.normalize(torch.randn(*shape, WIDTH, generator=generator), dim=-1)

    offsets = torch.arange(0, requests * length + 1, length)
    frozen = Frozen(unit(requests, AGENTS), unit(requests * length), None, offsets, TAU, False)
    values = torch.randn(requests * length, WIDTH, generator=generator).requires_grad_()
    return Case(values, frozen, requests, length)


def routed(case: Case, values: Tensor) -> Tensor:
    """The operator."""
    return soft_route(values, case.frozen)


def _both_passes(route: Callable[[Case, Tensor], Tensor], case: Case) -> None:
    found = route(case, case.values)
    torch.autograd.grad(found, case.values, torch.ones_like(found))


def padded_eager(case: Case, values: Tensor) -> Tensor:
    """What one writes first: batched products over padded requests, softmax, product."""
    shape = case.requests, case.length, -1
    keys, values = case.frozen.keys.view(shape), values.view(shape)
    distance = torch.cdist(case.frozen.queries, keys, compute_mode="use_mm_for_euclid_dist")
    return torch.softmax(distance / -TAU, dim=-1) @ values


def one_by_one(case: Case, values: Tensor) -> Tensor:
    """The same, request by request."""
    rows = case.frozen.keys.split(case.length), values.split(case.length)
    found = [
        torch.softmax(torch.cdist(query, keys) / -TAU, dim=-1) @ own
        for query, keys, own in zip(case.frozen.queries, *rows, strict=True)
    ]
    return torch.stack(found)


def fbgemm_jagged(case: Case, values: Tensor) -> Tensor:
    """The jagged operators of fbgemm: products, softmax and sums on jagged rows."""
    offsets, longest = case.frozen.offsets, case.length
    queries, keys = case.frozen.queries, case.frozen.keys
    ops = torch.ops.fbgemm
    products, _ = ops.jagged_dense_bmm(keys, offsets, queries.transpose(1, 2).contiguous(), longest)
    request = torch.arange(case.requests).repeat_interleave(case.length)
    squares = (keys * keys).sum(1, keepdim=True) + (queries * queries).sum(2)[request]
    scores = (squares - 2 * products).clamp_min(0).sqrt() / -TAU
    weights, _ = ops.jagged_softmax(scores, offsets, longest)
    return ops.jagged_jagged_bmm(weights, values, offsets, longest)


def attention(case: Case, values: Tensor) -> Tensor:
    """``scaled_dot_product_attention``, where it applies: *squared* distance is a product plus
    a bias of the key; the plain distance of the paper is beyond it.
    """
    shape = case.requests, case.length, -1
    keys, values = case.frozen.keys.view(shape), values.view(shape)
    bias = (keys * keys).sum(-1).div(-TAU).unsqueeze(1)
    queries = case.frozen.queries * (2 / TAU)
    return functional.scaled_dot_product_attention(queries, keys, values, bias, scale=1.0)


def measure() -> Topic:
    """All ratios."""
    figures: list[Figure] = []
    for length, requests in SHAPES.items():
        case = make_case(requests, length)
        plain = case.values.detach()
        expected = padded_eager(case, plain)
        torch.testing.assert_close(routed(case, plain), expected, rtol=1e-3, atol=1e-3)
        turns = take_turns(
            {
                "sgemm": sgemm(),
                "forward": partial(routed, case, plain),
                "both": partial(_both_passes, routed, case),
                "padded": partial(padded_eager, case, plain),
                "padded both": partial(_both_passes, padded_eager, case),
                "loop": partial(one_by_one, case, plain),
                "attention": partial(attention, case, plain),
            }
        )
        slow = take_turns(
            {
                "forward": partial(routed, case, plain),
                "fbgemm": partial(fbgemm_jagged, case, plain),
            },
            turns=3,
        )
        work = case.operations / SGEMM_OPERATIONS
        at = f"{length:,} events"
        figures += [
            turns.share(f"forward, share of sgemm, {at}", "sgemm", "forward", ">= 0.4", work),
            turns.share(
                f"forward and backward, share of sgemm, {at}", "sgemm", "both", ">= 0.4", 2 * work
            ),
            slow.ratio(f"faster than fbgemm's jagged form, {at}", "fbgemm", "forward", ">= 10"),
            turns.ratio(f"faster than padded eager, {at}", "padded", "forward", ">= 3"),
            turns.ratio(f"both passes, faster than padded eager, {at}", "padded both", "both"),
            turns.ratio(f"faster than request by request, {at}", "loop", "forward"),
            turns.ratio(f"faster than squared attention by SDPA, {at}", "attention", "forward"),
        ]
        figures += _shared(case, length)
    figures += _ragged()
    figures.append(_peak_memory())
    text = (
        f"{AGENTS} agents, keys and values of {WIDTH} columns. Where a number of events is named, "
        "all requests have it, and padding costs the rivals nothing; *ragged* requests are "
        "log-normal with a median of 2,000 events and at most 10,000, as histories are, and the "
        "padded form gets them padded already. Rates count the two matrix products alone; *both* "
        "passes count them twice: alpha is computed again for the gradient, where the padded form "
        "keeps it, L x K numbers a request. Results are checked to be equal before they are "
        "counted. *Keys from codes* is the default form, from codes and values to the agents' "
        "vectors, voting included: events of a leaf share one distance; in the forms above every "
        "event has its own. What is missing to the rate of a large product: the products here are "
        "64 wide and 200 long, which two threads do not share well (on one core it is 70 %), and "
        "one pass over L x K numbers makes weights of the first product for the second."
    )
    return Topic("Soft routing", text, figures, {})


def _shared(case: Case, length: int) -> list[Figure]:
    """Keys rebuilt from codes, as they are by default: events of a leaf share one distance.

    From codes and values to agents' vectors; votes and agents are counted in.
    """
    generator = torch.Generator().manual_seed(0)
    codebook = [functional.normalize(torch.randn(CODES, WIDTH, generator=generator), dim=-1) / 2]
    codebook.append(torch.randn(CODES, WIDTH, generator=generator) * 0.5 * WIDTH**-0.5)
    paths = drawn_paths(case.requests, length)
    codes = torch.stack([paths // CODES, paths % CODES], dim=1)
    offsets, values = case.frozen.offsets, case.values.detach()
    rules = TreeRules((CODES, CODES), KEEP, 0, None, TAU, False)
    held = CodeWords()

    def ours(_: Case, rows: Tensor) -> Tensor:
        leaves, agents = rules.grow(FrozenEvents(offsets, codes))
        every = torch.arange(len(codes))
        sums = sum_rows(rows, every, group_rows(leaves.of_event, len(leaves.path)))
        geometry = rules.geometry(leaves, agents, case.requests, codebook, held)
        return route_leaves(sums, geometry)

    leaves, agents = rules.grow(FrozenEvents(offsets, codes))
    vectors = path_vectors(leaves.path, codebook)
    slot, filled = to_slots(agents, case.requests)
    queries = torch.zeros(*filled.shape, WIDTH)
    queries[agents.request, slot] = vectors[agents.leaf]
    frozen = Frozen(queries, vectors[leaves.of_event], None, offsets, TAU, False)
    plain = Case(case.values, frozen, case.requests, length)
    torch.testing.assert_close(
        ours(plain, values), padded_eager(plain, values)[filled], rtol=1e-3, atol=1e-3
    )

    turns = take_turns(
        {
            "forward": partial(ours, plain, values),
            "both": partial(_both_passes, ours, plain),
            "padded": partial(padded_eager, plain, values),
            "padded both": partial(_both_passes, padded_eager, plain),
        }
    )
    at = f"keys from codes, {length:,} events"
    return [
        turns.ratio(f"faster than padded eager, {at}", "padded", "forward", ">= 3"),
        turns.ratio(f"both passes, faster than padded eager, {at}", "padded both", "both", ">= 3"),
    ]


def _ragged() -> list[Figure]:
    """Requests of unequal length, where padding costs what it does."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randn(16, generator=generator).exp().mul(2_000).long().clamp(50, 10_000)
    whole = make_case(1, int(lengths.sum()))
    offsets = functional.pad(lengths.cumsum(0), (1, 0))
    queries = functional.normalize(torch.randn(16, AGENTS, WIDTH, generator=generator), dim=-1)
    frozen = Frozen(queries, whole.frozen.keys, None, offsets, TAU, False)
    values = whole.values.detach()

    def pad(rows: Tensor) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows.split(lengths.tolist()), batch_first=True)

    keys, own = pad(frozen.keys), pad(values)
    beyond = torch.arange(keys.shape[1]) >= lengths.unsqueeze(1)

    def eager(rows: Tensor) -> Tensor:
        distance = torch.cdist(queries, keys, compute_mode="use_mm_for_euclid_dist")
        scores = (distance / -TAU).masked_fill(beyond.unsqueeze(1), float("-inf"))
        return torch.softmax(scores, dim=-1) @ rows

    def both(route: Callable[[Tensor], Tensor], rows: Tensor) -> None:
        needed = rows.detach().requires_grad_()
        found = route(needed)
        torch.autograd.grad(found, needed, torch.ones_like(found))

    def ours(rows: Tensor) -> Tensor:
        return soft_route(rows, frozen)

    torch.testing.assert_close(ours(values), eager(own), rtol=1e-3, atol=1e-3)
    turns = take_turns(
        {
            "forward": partial(ours, values),
            "both": partial(both, ours, values),
            "padded": partial(eager, own),
            "padded both": partial(both, eager, own),
        }
    )
    return [
        turns.ratio("faster than padded eager, ragged", "padded", "forward", ">= 3"),
        turns.ratio("both passes, faster than padded eager, ragged", "padded both", "both"),
    ]


def _peak_memory() -> Figure:
    """Peak memory beyond inputs and outputs, as a share of L x K floats, in a fresh process."""
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.routing"],
        check=True,
        capture_output=True,
        text=True,
    )
    name = "peak extra memory over L x K floats, 16 x 10,000 events"
    return figure(name, [float(found.stdout)], unit="%", goal="<= 0.05")


def _kilobytes(name: str) -> int:
    """Resident memory of this process now (VmRSS) or at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))


def main() -> None:
    """Print the share of L x K floats that both passes took at their peak."""
    warm = make_case(1, 1_000)
    torch.autograd.grad(soft_route(warm.values, warm.frozen).sum(), warm.values)
    case = make_case(16, 10_000)
    gradient = torch.ones(16, AGENTS, WIDTH)
    outputs = case.values.numel() * 4 + 2 * gradient.numel() * 4
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _kilobytes("VmRSS")
    found = soft_route(case.values, case.frozen)
    torch.autograd.grad(found, case.values, gradient)
    extra = max(0, (_kilobytes("VmHWM") - before) * 1024 - outputs)
    sys.stdout.write(f"{extra / (16 * 10_000 * AGENTS * 4)}")


if __name__ == "__main__":
    main()
