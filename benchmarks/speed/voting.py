"""Voting and activation against the plain reference, and against routing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.speed.measure import Figure, Topic, take_turns
from benchmarks.speed.routing import make_case, routed
from hisac_rec.methods.hisac.leaves import Agents
from hisac_rec.methods.hisac.reference import Path, vote
from hisac_rec.methods.hisac.voting import activate, count_leaves

CODES = (200, 200)
KEEP = (20, 10)
SHAPES = {2_000: 16, 10_000: 4}


def measure() -> Topic:
    """All ratios."""
    figures: list[Figure] = []
    for length, requests in SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        # Interests: a few hundred leaves a user, the k-th as likely as 1/k.
        likely = 1.0 / torch.arange(1, 401, dtype=torch.float64)
        paths = torch.stack(
            [
                torch.randperm(CODES[0] * CODES[1], generator=generator)[
                    torch.multinomial(likely, length, replacement=True, generator=generator)
                ]
                for _ in range(requests)
            ]
        ).flatten()
        codes = torch.stack([paths // CODES[1], paths % CODES[1]], dim=1)
        offsets = torch.arange(0, requests * length + 1, length)
        of_python = [[(a, b) for a, b in part.tolist()] for part in codes.split(length)]

        ours, plain = partial(_agents, codes, offsets), partial(_by_reference, of_python)
        found, expected = ours(), plain()
        for request, agents in enumerate(expected):
            own = found.path[found.request == request].tolist()
            assert own == [a * CODES[1] + b for a, b in agents], "voting differs from its reference"
        case = make_case(requests, length)
        turns = take_turns(
            {
                "ours": ours,
                "reference": plain,
                "routing": partial(routed, case, case.values.detach()),
            }
        )
        at = f"{length:,} events"
        figures += [
            turns.ratio(f"faster than the Python reference, {at}", "reference", "ours", ">= 50"),
            turns.share(f"share of soft routing's time, {at}", "ours", "routing", "<= 0.1"),
        ]
    text = (
        f"{CODES[0]} x {CODES[1]} codes, at most {KEEP[0]} x {KEEP[1]} agents. The agents are "
        "checked to be the reference's. Routing is that of the table above, events one by one. "
        "What is missing to fifty times: one pass counts all events, and some thirty small "
        "operators over a few hundred leaves a request follow, whose starting costs do not shrink."
    )
    return Topic("Voting", text, figures, {})


def _agents(codes: Tensor, offsets: Tensor) -> Agents:
    return activate(count_leaves(codes, offsets, CODES), KEEP, CODES)


def _by_reference(requests: Sequence[Sequence[Path]]) -> list[dict[Path, int]]:
    return [vote(paths, KEEP) for paths in requests]
