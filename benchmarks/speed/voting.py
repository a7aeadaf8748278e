"""Voting and activation against the plain reference, and against routing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.speed.measure import Figure, Topic, take_turns
from benchmarks.speed.routing import CODES, KEEP, SHAPES, drawn_paths, make_case, routed
from hisac_rec.methods.hisac.leaves import Agents
from hisac_rec.methods.hisac.reference import Path, vote
from hisac_rec.methods.hisac.voting import activate, count_leaves

BOTH = CODES, CODES


def measure() -> Topic:
    """All ratios."""
    figures: list[Figure] = []
    for length, requests in SHAPES.items():
        paths = drawn_paths(requests, length)
        codes = torch.stack([paths // CODES, paths % CODES], dim=1)
        offsets = torch.arange(0, requests * length + 1, length)
        of_python = [[(a, b) for a, b in part.tolist()] for part in codes.split(length)]

        ours, plain = partial(_agents, codes, offsets), partial(_by_reference, of_python)
        found, expected = ours(), plain()
        for request, agents in enumerate(expected):
            own = found.path[found.request == request].tolist()
            assert own == [a * CODES + b for a, b in agents], "voting differs from its reference"
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
        f"{CODES} x {CODES} codes, at most {KEEP[0]} x {KEEP[1]} agents. The agents are "
        "checked to be the reference's. Routing is that of the table above, events one by one. "
        "Loops compiled by Numba, on one core."
    )
    return Topic("Voting", text, figures, {})


def _agents(codes: Tensor, offsets: Tensor) -> Agents:
    return activate(count_leaves(codes, offsets, BOTH), KEEP, BOTH)


def _by_reference(requests: Sequence[Sequence[Path]]) -> list[dict[Path, int]]:
    return [vote(paths, KEEP) for paths in requests]
