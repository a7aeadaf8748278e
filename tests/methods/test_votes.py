"""Votes by event type in HiSAC as a whole: what is told of a candidate, kept and left as it was."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from histories import CODES, make_case, make_shape
from torch import Tensor

from hisac_rec.errors import UserError
from hisac_rec.methods.base import History
from hisac_rec.methods.hisac import strength
from hisac_rec.methods.hisac.method import HiSAC, HiSACConfig, InterestMemory
from hisac_rec.methods.hisac.reference import vote
from hisac_rec.methods.hisac.strength import path_vote_features
from hisac_rec.methods.hisac.tree import ByAgent

TYPES = ("liked", "disliked", "seen")
VOTES = {"disliked": -2.0, "seen": 0.0}
WEIGHTS = torch.tensor([1.0, -2.0, 0.0])
LENGTHS = [40, 0, 3, 17]


def make_method(
    defined: dict[str, float] | None = None, *, dtype: torch.dtype = torch.float64, **keys: Any
) -> HiSAC:
    """A method of a data set whose definition says ``defined``."""
    shape = replace(make_shape(dtype=dtype), event_types=TYPES, votes=defined)
    torch.manual_seed(3)
    return HiSAC(HiSACConfig(**keys), shape).to(dtype)


def typed(history: History, seed: int = 0, places: float = 0.9) -> History:
    """The same events, of random types and items of which something is known or not."""
    generator = torch.Generator().manual_seed(seed)
    count = history.num_events
    return replace(
        history,
        type=torch.randint(len(TYPES), (count,), generator=generator),
        placed=torch.rand(count, generator=generator) < places,
    )


def plain_votes(history: History, request: int, keep: list[int], sign: float) -> dict[Any, float]:
    """Leaf -> votes of one request, for it or against it."""
    rows = slice(*history.offsets[request : request + 2].tolist())
    assert history.type is not None
    assert history.placed is not None
    weights = (sign * WEIGHTS[history.type[rows]] * history.placed[rows]).tolist()
    if sign < 0 and not any(weight > 0 for weight in weights):
        return {}
    paths = [tuple(path) for path in history.codes[rows].tolist()]
    return {path: n / 65536 for path, n in vote(paths, keep, weights=weights).items()}


@pytest.mark.parametrize("by_loops", [True, False])
@pytest.mark.parametrize("keep", [[2, 2], [9, 9]])
def test_candidates_are_told_of_votes_for_and_against_their_path(
    keep: list[int], by_loops: bool
) -> None:
    method = make_method(VOTES, keep=keep)
    history, candidates = make_case(LENGTHS, [9] * len(LENGTHS), dtype=torch.float64)
    history = typed(history)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strength, "suit_loops", lambda _: by_loops)
        got = path_vote_features(method.compress(history), candidates, CODES)
    assert got.shape[1] == 8
    rejected = 0
    for row, (request, codes) in enumerate(
        zip(candidates.request.tolist(), candidates.codes.tolist(), strict=True)
    ):
        agents = plain_votes(history, request, keep, 1.0)
        against = plain_votes(history, request, keep, -1.0)
        total = max(1, sum(agents.values()))
        expected = []
        for level in (2, 1):
            here = sum(n for path, n in agents.items() if list(path[:level]) == codes[:level])
            no = sum(n for path, n in against.items() if list(path[:level]) == codes[:level])
            rejected += no > here
            expected += [math.log1p(here), here / total, math.log1p(no)]
            expected.append((here - no) / (1 + here + no))
        assert got[row].tolist() == pytest.approx(expected, abs=1e-6)
    assert rejected  # the case tells something


def test_every_event_is_routed_whatever_it_votes() -> None:
    """With a temperature so high that all weigh alike, every agent is the mean of the history."""
    method = make_method(VOTES, tau=1e6)
    history, _ = make_case(LENGTHS, [1] * len(LENGTHS), dtype=torch.float64)
    history = typed(history, places=0.5)
    memory = method.compress(history)
    for request, (start, end) in enumerate(zip(*_bounds(history), strict=True)):
        own = memory.vectors[request, memory.filled[request]]
        assert bool(len(own)) == (start < end)
        mean = history.values[start:end].mean(0) if start < end else history.values[:0]
        torch.testing.assert_close(own, mean.expand_as(own), rtol=1e-4, atol=1e-5)


def _bounds(history: History) -> tuple[list[int], list[int]]:
    return history.offsets[:-1].tolist(), history.offsets[1:].tolist()


@pytest.mark.parametrize("path_votes", ["gate", "add", "off"])
def test_what_a_cache_holds_reads_the_same(path_votes: str) -> None:
    method = make_method(VOTES, path_votes=path_votes)
    history, candidates = make_case(LENGTHS, [4] * len(LENGTHS), dtype=torch.float64)
    history = typed(history)
    memory = method.compress(history)
    held = {name: value for name, value in vars(memory).items() if isinstance(value, Tensor)}
    assert held.keys() == {"vectors", "filled", "events", "path", "against", "against_path"}
    again = method.restore(held, history)
    assert isinstance(again, InterestMemory)
    assert torch.equal(method.read(again, candidates), method.read(memory, candidates))


def test_without_weights_nothing_is_as_it_was_not() -> None:
    """Types that all vote one, and a model file that takes the definition's votes back, leave
    parameters and numbers equal to the bit, and the memory without votes against."""
    history, candidates = make_case(LENGTHS, [4] * len(LENGTHS))
    plain = make_method(dtype=torch.float32)
    taken_back = make_method(VOTES, votes={}, dtype=torch.float32)
    assert plain.state_dict().keys() == taken_back.state_dict().keys()
    assert not any(name.startswith("standing") for name in plain.state_dict())
    expected = plain(history, candidates)
    known = typed(history, places=2.0)
    assert torch.equal(plain(known, candidates), expected)
    assert torch.equal(taken_back(known, candidates), expected)
    assert plain.compress(known).against is None


def test_weights_without_a_sign_add_no_parameter() -> None:
    plain, weighted = make_method(), make_method({"seen": 0.0, "disliked": 0.5})
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (plain, weighted)]
    assert shapes[0] == shapes[1]
    history, _ = make_case(LENGTHS, [1] * len(LENGTHS), dtype=torch.float64)
    memory = weighted.compress(typed(history, places=2.0))
    types = typed(history, places=2.0).type
    assert types is not None
    liked, disliked = (int((types[:40] == kind).sum()) for kind in (0, 1))
    assert float(memory.events[0].sum()) == pytest.approx(liked + disliked / 2)


def test_a_model_file_overrides_the_definition() -> None:
    assert make_method(VOTES).rules.weights == (1.0, -2.0, 0.0)
    assert make_method(VOTES, votes={"seen": 0.25}).rules.weights == (1.0, 1.0, 0.25)
    with pytest.raises(UserError, match=r"no event type 'dislike'; did you mean 'disliked'\?"):
        make_method(votes={"dislike": -1})


def test_the_loader_groups_events_by_the_agents_that_the_votes_choose() -> None:
    method = make_method(VOTES, keep=[2, 2], reach=1)
    history = typed(make_case(LENGTHS, [1] * len(LENGTHS), dtype=torch.float64)[0])
    shape = replace(make_shape(), event_types=TYPES, votes=VOTES)
    grouping = HiSAC.grouping(method.config, shape)
    assert isinstance(grouping, ByAgent)
    _, agents = method.rules.grow(history.frozen)
    assert grouping(history.frozen).count == len(agents.leaf)
    untyped = make_method(keep=[2, 2]).rules.grow(history.frozen)[1]
    assert not torch.equal(agents.leaf, untyped.leaf)
