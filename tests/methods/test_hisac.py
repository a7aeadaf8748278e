"""HiSAC whole: what ``compress`` keeps equals voting and routing written plainly."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from histories import CODES, DIM, VECTOR_DIM, make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.config import validate
from hisac_rec.errors import UserError
from hisac_rec.methods.base import History, MethodShape
from hisac_rec.methods.hisac import strength
from hisac_rec.methods.hisac.method import HiSAC, HiSACConfig
from hisac_rec.methods.hisac.reference import path_vector, route, vote
from hisac_rec.methods.hisac.strength import path_vote_features, vote_tiers
from hisac_rec.methods.parts.agents import log_weights


def make_method(dtype: torch.dtype = torch.float64, **keys: Any) -> HiSAC:
    return HiSAC(HiSACConfig(**keys), make_shape(dtype=dtype)).to(dtype)


def plain_memory(method: HiSAC, history: History) -> list[dict[int, tuple[int, list[float]]]]:
    """Per request: path number -> (votes, routed vector), event by event."""
    config = method.config
    codebook = [words.tolist() for words in method.codebook]
    result = []
    for request in range(history.num_requests):
        rows = slice(*history.offsets[request : request + 2].tolist())
        paths = [tuple(path) for path in history.codes[rows].tolist()]
        values = history.values[rows].tolist()
        if config.semantics == "vectors":
            assert history.vectors is not None
            keys = history.vectors[rows].tolist()
        else:
            keys = [path_vector(path, codebook) for path in paths]
        result.append(
            {
                first * CODES[1] + second: (
                    votes,
                    route(
                        path_vector((first, second), codebook),
                        keys,
                        values,
                        config.tau,
                        config.squared_distance,
                    ),
                )
                for (first, second), votes in vote(paths, config.keep).items()
            }
        )
    return result


@pytest.mark.parametrize("semantics", ["codes", "vectors"])
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 17, 60]), min_size=1, max_size=4),
    keep=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    tau=st.sampled_from([0.05, 1.0]),
    squared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_compress_equals_the_reference(
    semantics: str,
    lengths: list[int],
    keep: tuple[int, int],
    tau: float,
    squared: bool,
    seed: int,
) -> None:
    method = make_method(keep=list(keep), tau=tau, squared_distance=squared, semantics=semantics)
    history, _ = make_case(lengths, [1] * len(lengths), dtype=torch.float64, seed=seed)
    memory = method.compress(history)
    for request, expected in enumerate(plain_memory(method, history)):
        filled = memory.filled[request]
        assert memory.path[request, filled].tolist() == list(expected)
        assert memory.events[request, filled].tolist() == [votes for votes, _ in expected.values()]
        # 1e-5: an event on an agent's own leaf has distance 0, and the square root of a
        # difference of rounded squares is only half as exact.
        torch.testing.assert_close(
            memory.vectors[request, filled],
            torch.tensor([v for _, v in expected.values()], dtype=torch.float64).view(-1, DIM),
            rtol=1e-5,
            atol=1e-5,
        )
        assert not memory.vectors[request, ~filled].any()
        assert (memory.path[request, ~filled] == -1).all()


@pytest.mark.parametrize("way", ["agents", "hard"])
@pytest.mark.parametrize("semantics", ["codes", "vectors"])
def test_shared_out_events_add_up_to_the_history(way: str, semantics: str) -> None:
    method = make_method(keep=[2, 2], routing=way, semantics=semantics)
    history, _ = make_case([60, 0, 1], [1, 1, 1], dtype=torch.float64)
    memory = method.compress(history)
    assert memory.events.sum(1).tolist() == pytest.approx([60.0, 0.0, 1.0])
    sums = (memory.vectors * memory.events.unsqueeze(-1)).sum(1)
    expected = torch.stack([part.sum(0) for part in history.values.split([60, 0, 1])])
    torch.testing.assert_close(sums, expected)


@pytest.mark.parametrize("half_life", [None, 3.0])
def test_fading_votes_and_reserved_agents(half_life: float | None) -> None:
    method = make_method(keep=[1, 1], tail_agents=3, vote_half_life=half_life)
    history, _ = make_case([60, 0, 1], [1, 1, 1], dtype=torch.float64)
    memory = method.compress(history)
    assert memory.filled.sum(1).tolist() == [4, 0, 1]
    paths = [tuple(path) for path in history.codes[:60].tolist()]
    unit = 1 if half_life is None else 65536
    expected = vote(paths, [1, 1], half_life=half_life, tail=3)
    assert memory.path[0].tolist() == [a * CODES[1] + b for a, b in expected]
    assert memory.events[0].tolist() == pytest.approx([v / unit for v in expected.values()])


def test_semantics_find_an_agent_that_embeddings_do_not() -> None:
    """With equal embeddings everywhere, the gain decides which agent is read."""
    method = make_method(keep=[4, 6], path_votes="off", profile=False, agent_weight="none")
    history, candidates = make_case([40], [5], dtype=torch.float64)
    blind = type(candidates)(
        candidates.offsets,
        torch.zeros_like(candidates.values),
        candidates.codes,
        None,
        candidates.request,
    )
    memory = method.compress(history)
    found = method.read(memory, blind)
    assert found.std(0).max() > 1e-6
    words = [level.tolist() for level in method.codebook]
    agents = [divmod(path, CODES[1]) for path in memory.path[0].tolist()]
    for row, codes in enumerate(candidates.codes.tolist()):
        wanted = torch.tensor(path_vector(tuple(codes), words), dtype=torch.float64)
        scores = torch.tensor(
            [
                torch.nn.functional.cosine_similarity(
                    wanted, torch.tensor(path_vector(path, words), dtype=torch.float64), dim=0
                )
                for path in agents
            ]
            + [0.0],
            dtype=torch.float64,
        )
        slots = torch.cat([memory.vectors[0], torch.zeros(1, DIM, dtype=torch.float64)])
        torch.testing.assert_close(found[row, 0], scores.softmax(0) @ slots)
    with torch.no_grad():
        method.semantic_gain.zero_()
    assert method.read(memory, blind).std(0).max() < 1e-12


def test_a_candidate_of_whom_nothing_is_known_has_no_place() -> None:
    """Its codes are those of the mean item: they must not decide anything."""
    method = make_method(keep=[4, 6])
    history, candidates = make_case([40, 3], [5, 2], dtype=torch.float64)
    memory = method.compress(history)
    placed = torch.tensor([True, False, True, True, False, False, True])
    elsewhere = torch.where(placed.unsqueeze(1), candidates.codes, 0)
    found = method.read(memory, replace(candidates, placed=placed))
    moved = method.read(memory, replace(candidates, codes=elsewhere, placed=placed))
    torch.testing.assert_close(found, moved, rtol=0, atol=0)
    known = method.read(memory, candidates)
    torch.testing.assert_close(found[placed], known[placed])
    assert (found[~placed, 0] - known[~placed, 0]).abs().amax(1).min() > 1e-6


@pytest.mark.parametrize("by_loops", [True, False])
@pytest.mark.parametrize("place", ["codes", "vectors"])
def test_votes_by_likeness(place: str, by_loops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted one by one: each agent's votes in the tier of its cosine with the candidate."""
    tiers = 5
    monkeypatch.setattr(strength, "suit_loops", lambda _: by_loops)
    method = make_method(keep=[4, 6], tiers=tiers, candidate_semantics=place)
    history, candidates = make_case([40, 0, 3], [5, 2, 4], dtype=torch.float64)
    memory = method.compress(history)
    found = vote_tiers(memory, candidates, method._kinship(memory, candidates), tiers)
    words = [level.tolist() for level in method.codebook]
    for row, request in enumerate(candidates.request.tolist()):
        wanted = candidates.vectors[row]
        if place == "codes":
            path = tuple(candidates.codes[row].tolist())
            wanted = torch.tensor(path_vector(path, words), dtype=torch.float64)
        counts = [0.0] * tiers
        for path, votes in zip(memory.path[request], memory.events[request], strict=True):
            if path < 0:
                continue
            agent = path_vector(divmod(int(path), CODES[1]), words)
            cosine = torch.nn.functional.cosine_similarity(wanted, torch.tensor(agent).double(), 0)
            counts[min(tiers - 1, int((float(cosine) + 1) / 2 * tiers))] += float(votes)
        total = max(1.0, sum(counts))
        expected = [math.log1p(c) for c in counts] + [c / total for c in counts]
        assert found[row].tolist() == pytest.approx(expected)
    assert method.read(memory, candidates).shape == (11, 3, DIM)
    assert method.interests == 3
    sides = HiSAC.vector_sides(method.config)
    assert sides == (("candidate",) if place == "vectors" else ())


def test_newest_events_stay_as_they_are() -> None:
    method = make_method(keep=[4, 6], newest=3)
    history, candidates = make_case([40, 0, 2], [5, 2, 4], dtype=torch.float64)
    memory = method.compress(history)
    assert memory.newest is not None
    events, filled = memory.newest
    assert filled.sum(1).tolist() == [3, 0, 2]
    torch.testing.assert_close(events[0], history.values[:40].flip(0)[:3])
    found = method.read(memory, candidates)
    assert found.shape == (11, 3, DIM)
    assert method.interests == 3
    # The agents' vectors are what they are without; the last one knows the newest events alone.
    gradient = torch.autograd.grad(found[:5, 2].sum(), history.values)[0].abs().sum(1)
    assert (gradient[37:40] > 0).all()
    assert not gradient[:37].any()


def test_routed_vectors_are_exact_enough_in_fp32() -> None:
    """Thousands of events, the default temperature: fp32 against the plain float64."""
    method = make_method(torch.float32, keep=[4, 2])
    history, _ = make_case([3_000, 1], [1, 1])
    memory = method.compress(history)
    for request, expected in enumerate(plain_memory(method, history)):
        torch.testing.assert_close(
            memory.vectors[request, memory.filled[request]],
            torch.tensor([v for _, v in expected.values()]),
            rtol=0,
            atol=1e-2,
        )


def test_pruned_leaves_still_take_part_in_routing() -> None:
    """The long tail: an event whose leaf was pruned moves the surviving agent's vector."""
    method = make_method(keep=[1, 1], tau=5.0)
    history, _ = make_case([9], [1], dtype=torch.float64)
    memory = method.compress(history)
    assert memory.filled.sum() == 1
    (gradient,) = torch.autograd.grad(memory.vectors.sum(), history.values)
    assert (gradient.abs().sum(1) > 0).all()


def test_weights_are_softened_votes() -> None:
    history, _ = make_case([50, 0, 1], [1, 1, 1], dtype=torch.float64)
    for power in (0.0, 0.5, 1.0):
        memory = make_method(weight_power=power, keep=[2, 2]).compress(history)
        votes = memory.events[0, memory.filled[0]] ** power
        found = log_weights(memory, power)
        torch.testing.assert_close(found[0, memory.filled[0]].exp(), votes / votes.sum())
        assert found.isfinite().all()


def test_gradient_reaches_events_only() -> None:
    method = make_method(semantics="vectors")
    history, _ = make_case([30, 2], [1, 1], dtype=torch.float64)
    assert history.vectors is not None
    history.vectors.requires_grad_()
    method.compress(history).vectors.square().sum().backward()
    assert history.values.grad is not None
    assert history.vectors.grad is None
    assert not any(words.requires_grad for words in method.codebook)


@pytest.mark.parametrize("semantics", ["codes", "vectors"])
def test_gradient_of_the_whole_method(semantics: str) -> None:
    method = make_method(keep=[2, 2], semantics=semantics)
    history, candidates = make_case([12, 0, 1], [2, 1, 1], dtype=torch.float64)

    def run(values: Tensor, wanted: Tensor) -> Tensor:
        return method(
            History(history.offsets, values, history.codes, history.vectors, history.age),
            type(candidates)(
                candidates.offsets, wanted, candidates.codes, None, candidates.request
            ),
        )

    assert torch.autograd.gradcheck(run, (history.values, candidates.values))


def test_agent_weight_enters_as_bias() -> None:
    history, candidates = make_case([40], [3], dtype=torch.float64)
    results = {}
    for weight in ("bias", "none"):
        torch.manual_seed(0)
        method = make_method(agent_weight=weight, keep=[3, 2])
        memory = method.compress(history)
        results[weight] = method.read(memory, candidates)
        if weight == "bias":
            method.reader.power = 0.0
            equal = method.read(memory, candidates)
    assert not torch.allclose(results["bias"], results["none"])
    assert not torch.allclose(equal, results["bias"])


def test_compressed_once_read_in_any_order() -> None:
    """Serving: the cached memory gives what the whole forward gives."""
    method = make_method(torch.float32)
    history, candidates = make_case([20, 3], [4, 2])
    memory = method.compress(history)
    torch.testing.assert_close(method.read(memory, candidates), method(history, candidates))


def test_messages() -> None:
    with pytest.raises(UserError, match="needs semantic ids; run 'hisac-rec semantic-ids'"):
        HiSAC(HiSACConfig(), MethodShape(DIM, (), 0))
    with pytest.raises(UserError, match=r"history.keep = \[4\]: the codebook has 2 levels"):
        HiSAC(HiSACConfig(keep=[4]), make_shape())


def test_a_codebook_of_more_paths_than_numbers() -> None:
    """Four levels of 4,096 times a million requests are beyond int64: refused, not wrapped."""
    words = tuple(torch.zeros(4096, VECTOR_DIM) for _ in range(4))
    with pytest.raises(UserError, match=r"\[4096, 4096, 4096, 4096\] codes .* fewer levels"):
        HiSAC(HiSACConfig(keep=[2] * 4), MethodShape(DIM, words, VECTOR_DIM))
    fits = tuple(words[:1024] for words in words)
    HiSAC(HiSACConfig(keep=[2] * 4), MethodShape(DIM, fits, VECTOR_DIM))


@pytest.mark.parametrize("number", [0, -3])
def test_keep_is_positive(number: int) -> None:
    with pytest.raises(UserError, match=rf"key 'keep.1' = {number}: .*greater than 0"):
        validate(HiSACConfig, {"keep": [4, number]}, "m.toml")


@pytest.mark.parametrize("by_loops", [True, False])
@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 5, 60]), min_size=1, max_size=4),
    keep=st.tuples(st.integers(1, 4), st.integers(1, 6)),
    seed=st.integers(0, 99),
)
def test_path_votes_are_the_agents_votes_along_the_candidates_path(
    by_loops: bool, lengths: list[int], keep: tuple[int, int], seed: int
) -> None:
    method = make_method(keep=list(keep))
    history, candidates = make_case(lengths, [2] * len(lengths), dtype=torch.float64, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strength, "suit_loops", lambda _: by_loops)
        got = path_vote_features(method.compress(history), candidates, CODES)
    for row, (request, codes) in enumerate(
        zip(candidates.request.tolist(), candidates.codes.tolist(), strict=True)
    ):
        rows = slice(*history.offsets[request : request + 2].tolist())
        agents = vote([tuple(path) for path in history.codes[rows].tolist()], list(keep))
        total = max(1, sum(agents.values()))
        expected = []
        for level in (2, 1):
            here = sum(v for path, v in agents.items() if list(path[:level]) == codes[:level])
            expected += [math.log1p(here), here / total]
        assert got[row].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("way", ["gate", "add", "off"])
def test_votes_scale_the_attended_vector_or_are_added_to_it(way: str) -> None:
    history, candidates = make_case([40, 0, 3], [3, 2, 2], dtype=torch.float64)
    torch.manual_seed(0)
    method = make_method(path_votes=way)
    memory = method.compress(history)
    found = method.read(memory, candidates)
    plain = method.reader(memory, candidates, method._kinship(memory, candidates))
    torch.testing.assert_close(found[:, 1], plain[:, 1])
    attended = plain[:, 0]
    if way != "off":
        features = path_vote_features(memory, candidates, CODES).double()
        strength = method.strength(features)
        attended = attended * (1 + strength) if way == "gate" else attended + strength
    torch.testing.assert_close(found[:, 0], attended)
