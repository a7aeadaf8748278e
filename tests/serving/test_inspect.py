"""One person's interest tree, against plain counting."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from training import one_process, predict_run, small_config, train_run

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.methods.parts.attention import CandidateAttention, Kinship
from hisac_rec.semantic.store import load_semantics
from hisac_rec.serving.interests import Interests, inspect_user
from hisac_rec.serving.interests_page import print_interests, to_html
from hisac_rec.train.run import RunFolder


@pytest.fixture(scope="module")
def run(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("inspect") / "run"
    train_run(small_config("history.keep=[2,2]"), small_data, out)
    return RunFolder(out)


@pytest.fixture(scope="module")
def found(run: RunFolder, small_data: PreparedData) -> Interests:
    with one_process() as ranks:
        return inspect_user(run, small_data, ranks, "17")


def last_row(data: PreparedData, user: str) -> dict:
    """The user's row of the test split, cut at the last request."""
    names = data.read_parquet("vocab/user.parquet")["value"].to_pylist()
    for path in data.split_files("test"):
        for row in data.read_parquet(str(path.relative_to(data.root))).to_pylist():
            if names[row["user"]] == user:
                request = row["requests"][-1]
                seen = slice(request["history_end"])
                history, types = row["history_item"][seen], row["history_type"][seen]
                return request | {"history": history, "types": types}
    raise AssertionError


def test_votes_are_events_on_leaves(found: Interests, small_data: PreparedData) -> None:
    row = last_row(small_data, "17")
    codes = load_semantics(small_data).codes
    votes = Counter(tuple(map(int, codes[item])) for item in row["history"])
    assert {leaf.path: leaf.events for leaf in found.leaves} == votes
    assert found.events == len(row["history"])
    names = small_data.items["raw_id"].to_pylist()
    for leaf in found.leaves:
        own = Counter(names[i] for i in row["history"] if tuple(map(int, codes[i])) == leaf.path)
        for name, times in leaf.items:
            assert own[name.split(" ")[0]] == times


def test_votes_for_and_against_are_told_apart(small_data: PreparedData, tmp_path: Path) -> None:
    weights = {"view": -0.5, "like": 2.0}
    votes = ",".join(f"{kind}={weight}" for kind, weight in weights.items())
    train_run(small_config(f"history.votes={{{votes}}}"), small_data, tmp_path / "run")
    with one_process() as ranks:
        found = inspect_user(RunFolder(tmp_path / "run"), small_data, ranks, "17")
    types = small_data.manifest.event_types
    row = last_row(small_data, "17")
    codes = load_semantics(small_data).codes
    expected = Counter[tuple[tuple[int, ...], bool]]()
    for item, kind in zip(row["history"], row["types"], strict=True):
        weight = weights[types[kind]]
        expected[tuple(map(int, codes[item])), weight > 0] += abs(weight)
    assert sum(leaf.against for leaf in found.leaves)
    for leaf in found.leaves:
        assert (leaf.votes, leaf.against) == (expected[leaf.path, True], expected[leaf.path, False])
        assert leaf.agent <= (leaf.votes > 0)
    assert " against" in to_html(found)


def test_two_branches_of_two_leaves_survive(found: Interests) -> None:
    branches = Counter[int]()
    for leaf in found.leaves:
        branches[leaf.path[0]] += leaf.events
    best = {code for code, _ in sorted(branches.items(), key=lambda one: (-one[1], one[0]))[:2]}
    for code in branches:
        own = sorted(
            (leaf for leaf in found.leaves if leaf.path[0] == code),
            key=lambda leaf: (-leaf.events, leaf.path),
        )
        expected = own[:2] if code in best else []
        assert [leaf for leaf in own if leaf.agent] == expected
    assert sum(leaf.weight for leaf in found.leaves) == pytest.approx(1)
    assert found.pruned == sum(leaf.events for leaf in found.leaves if not leaf.agent) > 0
    agents = {leaf.path for leaf in found.leaves if leaf.agent}
    assert {leaf.nearest for leaf in found.leaves} <= agents
    assert all(0 < leaf.share <= 1 for leaf in found.leaves)


def test_candidates_are_scored_as_evaluation_does(
    found: Interests, run: RunFolder, small_data: PreparedData
) -> None:
    evaluated = predict_run(run.root, small_data)
    names = small_data.read_parquet("vocab/user.parquet")["value"].to_pylist()
    own = (evaluated["user"] == names.index("17")) & (evaluated["time"] == found.time)
    np.testing.assert_allclose(
        [one.score for one in found.candidates], np.sort(evaluated["score"][own])[::-1], atol=1e-6
    )
    for one in found.candidates:
        assert sum(share for _, share in one.attention) + one.nothing == pytest.approx(1, abs=1e-5)


def test_other_candidates_have_no_label(
    found: Interests, run: RunFolder, small_data: PreparedData
) -> None:
    wanted = [found.candidates[0].item.split(" ")[0], "3"]
    with one_process() as ranks:
        asked = inspect_user(run, small_data, ranks, "17", candidates=wanted)
    assert asked.leaves == found.leaves
    scores = {one.item: one.score for one in asked.candidates}
    assert scores[found.candidates[0].item] == pytest.approx(found.candidates[0].score, abs=1e-6)
    assert all(one.label is None for one in asked.candidates)


def test_weights_are_those_of_the_attention() -> None:
    torch.manual_seed(0)
    attention = CandidateAttention(8, 2)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    memory, mask = torch.randn(2, 5, 8), torch.rand(2, 5) < 0.7
    candidates, offsets = torch.randn(7, 8), torch.tensor([0, 3, 7])
    kinship = Kinship(
        torch.randn(7, 6), torch.randint(0, 6, (2, 5, 2)), torch.rand(2, 5), torch.randn(2)
    )
    arguments = (candidates, offsets, memory, mask, torch.randn(2, 5), kinship)
    one_head = CandidateAttention(8, 1)
    one_head.load_state_dict(attention.state_dict())
    of_one = Kinship(kinship.products, kinship.words, kinship.scale, kinship.gain[:1])
    weights = one_head.weights(*arguments[:5], of_one)
    values = torch.cat([one_head.value(memory), one_head.null_value.expand(2, 1, -1)], 1)
    request = torch.tensor([0] * 3 + [1] * 4)
    expected = one_head.out(torch.einsum("nk,nkd->nd", weights, values[request]))
    torch.testing.assert_close(one_head(*arguments[:5], of_one), expected)
    assert torch.allclose(attention.weights(*arguments).sum(1), torch.ones(7))


def test_the_page_stands_alone_and_escapes_names(found: Interests) -> None:
    evil = replace(found.candidates[0], item="<script>alert(1)</script>")
    page = to_html(replace(found, candidates=[evil]))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=", page)
    tags: list[str] = []

    class Balanced(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta",):
                tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert tags.pop() == tag

    Balanced().feed(page)
    assert tags == []
    assert page.count("<tr") == 2 + len(found.leaves) + len(found.branches)


def test_the_terminal_shows_the_tree(found: Interests) -> None:
    console = Console(record=True, width=160)
    print_interests(found, console, leaves=1)
    text = console.export_text()
    assert f"user 17: {found.events:,} events on {len(found.leaves)} leaves" in text
    assert "pruned;" in text or "more leaves" in text
    assert "nobody" in text


def test_what_cannot_be_inspected_is_refused(
    run: RunFolder, small_data: PreparedData, tmp_path: Path
) -> None:
    with one_process() as ranks:
        with pytest.raises(UserError, match="no user 'nobody'"):
            inspect_user(run, small_data, ranks, "nobody")
        with pytest.raises(UserError, match="no item 'nothing'"):
            inspect_user(run, small_data, ranks, "17", candidates=["nothing"])
    train_run(small_config('history={method="mean"}'), small_data, tmp_path / "mean")
    with one_process() as ranks, pytest.raises(UserError, match="grows no interest tree"):
        inspect_user(RunFolder(tmp_path / "mean"), small_data, ranks, "17")
