"""Positives that no draw can be like: how many there are, and what is left without them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from till import TEST, VALID, Line, digest, lines, make_till, requests

from hisac_rec.data.contract import SPLITS, PreparedData
from hisac_rec.errors import UserError
from hisac_rec.preparation import rawlog, users
from hisac_rec.preparation.first_events import Moments, warning

DROP = "requests.negatives.first_events=drop"
FINGERPRINT = "87638d9b32d550812b42e0a0008050fd"
"""Of the till's data, before there was a key for first events."""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., PreparedData]:
    """Prepare the till's log (or other lines) with overrides."""
    return partial(make_till, tmp_path)


def shares(data: PreparedData) -> list[float | None]:
    return [data.manifest.splits[split].first_events for split in SPLITS]


def sparse_lines() -> list[Line]:
    """The till's log with goods that get another name every so often."""
    return [
        (u, f"s{(int(sku[1:]) + at // 9_000 * 5) % 60}", at, k, b) for u, sku, at, k, b in lines()
    ]


def by_hand(log: list[Line], window: int = 10**9) -> list[tuple[tuple[str, int, str], bool]]:
    """Each purchase, and whether nobody had bought the good before, in the window."""
    sold = [(sku, at) for _, sku, at, kind, _ in log if kind == "bought"]
    return [
        ((user, at, sku), not any(s == sku and at - window <= t < at for s, t in sold))
        for user, sku, at, kind, _ in log
        if kind == "bought"
    ]


@pytest.mark.parametrize("rule", [{}, {"window": 4_000}, {"by": "uniform"}])
def test_the_share_of_every_split(make: Callable[..., PreparedData], rule: dict[str, Any]) -> None:
    options = [f"requests.negatives.{key}={value}" for key, value in rule.items()]
    log = sparse_lines()
    data = make(*options, log=log)
    first = by_hand(log, rule.get("window", 10**9))
    for share, low, high in zip(shares(data), (0, VALID, TEST), (VALID, TEST, 10**9), strict=True):
        found = [is_first for (_, at, _), is_first in first if low <= at < high]
        assert share == np.mean(found)
        assert 0 < share < 1
    assert warning({"train": shares(data)[0]}) is not None


@pytest.mark.parametrize("options", [[], ["requests.negatives.window=4000"]])
def test_dropped_ones_are_no_candidates_and_stay_history(
    make: Callable[..., PreparedData], options: list[str]
) -> None:
    log = sparse_lines()
    kept, dropped = make(*options, log=log), make(*options, DROP, out="drop", log=log)
    purchases = by_hand(log, 4_000 if options else 10**9)
    first = dict(purchases)
    assert shares(dropped) == shares(kept)
    left = 0
    for split in SPLITS:
        whole = {(r["user"], r["time"], r["bought"][0]): r for r in requests(kept, split)}
        baskets = {(user, at): r for (user, at, _), r in whole.items()}
        made = requests(dropped, split)
        for request in made:
            key = request["user"], request["time"]
            before = baskets.pop(key)
            assert request["bought"] == [s for s in before["bought"] if not first[(*key, s)]]
            assert request["bought"]
            assert request["seen"] == before["seen"]
            assert len(request["drawn"]) <= 3 * len(request["bought"])
            left += len(request["bought"])
        for key, before in baskets.items():  # nothing of these is left
            assert all(first[(*key, sku)] for sku in before["bought"])
    assert left == sum(not is_first for _, is_first in purchases)
    assert sum(split.positives for split in dropped.manifest.splits.values()) == left
    counts = sum(item["train_count"] for item in dropped.items.to_pylist())
    assert counts == dropped.manifest.splits["train"].positives
    # What may be drawn is the log's, whatever became candidates.
    assert dropped.items["first_time"].equals(kept.items["first_time"])


def test_what_is_stored_is_as_if_they_had_been_no_candidates(
    make: Callable[..., PreparedData],
) -> None:
    """Against a log that says so itself, with histories cut short."""
    options = ["history.max_length=4", "history.min_events=2", "requests.negatives.per_positive=1"]
    log = sparse_lines()
    first = dict(by_hand(log))
    marked = [
        (u, sku, at, "new" if kind == "bought" and first[(u, at, sku)] else kind, basket)
        for u, sku, at, kind, basket in log
    ]
    dropped = make(*options, DROP, out="drop", log=log)
    told = make(*options, out="told", log=marked)
    for split in SPLITS:
        ours, theirs = requests(dropped, split), requests(told, split)
        assert ours
        for one in (*ours, *theirs):
            del one["drawn"]  # the other log has fewer to draw from
        assert ours == theirs
        one, other = dropped.manifest.splits[split], told.manifest.splits[split]
        assert (one.users, one.events, one.requests) == (other.users, other.events, other.requests)


@pytest.mark.parametrize("drop", [False, True])
def test_the_same_bytes_when_cut_off_and_in_other_blocks(
    make: Callable[..., PreparedData], monkeypatch: pytest.MonkeyPatch, drop: bool
) -> None:
    options = [DROP] if drop else []
    whole = make(*options, out="whole")
    monkeypatch.setattr(rawlog, "BLOCK_EVENTS", 600)
    monkeypatch.setattr(users, "SAVE_BLOCKS", 1)
    small = make(*options, out="small")
    assert shares(small) == shares(whole)
    done = []
    cut_splits = users.cut_splits

    def fail(*arguments: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return cut_splits(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(users, "cut_splits", fail)
        with pytest.raises(KeyboardInterrupt):
            make(*options)
    monkeypatch.setattr(rawlog, "write_pools", fail)  # not a second time
    assert digest(make(*options).root) == digest(small.root)


def test_training_knows_nothing_of_later_sales(make: Callable[..., PreparedData]) -> None:
    options = ["split={by='user_fraction'}", DROP]
    log = sorted(sparse_lines(), key=lambda line: (line[0], line[2]))
    size = {user: sum(line[0] == user for line in log) for user in {line[0] for line in log}}
    rank: dict[str, int] = {}
    other = []
    for user, sku, at, kind, basket in log:
        k = rank[user] = rank.get(user, -1) + 1
        late = k >= 0.8 * size[user] + 3
        other.append((user, f"s{k % 12}" if late else sku, at, kind, basket))
    now, later = make(*options, log=log), make(*options, out="later", log=other)
    assert digest(now.root, "train/*") == digest(later.root, "train/*")
    assert shares(now)[0] == shares(later)[0]
    assert digest(now.root, "test/*") != digest(later.root, "test/*")


def test_without_a_clock_there_are_none(make: Callable[..., PreparedData]) -> None:
    order = ["split={by='user_fraction'}", "clock=false"]
    assert shares(make(*order)) == [0.0] * 3
    with pytest.raises(UserError, match="needs 'clock = true'"):
        make(*order, DROP, out="drop")


def test_a_split_of_nothing_else(make: Callable[..., PreparedData]) -> None:
    log = [
        (u, f"n{n}" if at >= TEST else s, at, k, b) for n, (u, s, at, k, b) in enumerate(lines())
    ]
    items = "source.items=SELECT DISTINCT sku AS item FROM read_csv('{raw}/till.csv')"
    with pytest.raises(UserError, match="test split is empty: all its positives are the first"):
        make(DROP, items, log=log)


def test_data_keeps_the_fingerprint_that_it_had(make: Callable[..., PreparedData]) -> None:
    assert make().manifest.fingerprint == FINGERPRINT
    assert make(DROP, out="drop").manifest.fingerprint != FINGERPRINT


def test_search_by_halves() -> None:
    """Against a look at every moment."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, 40)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    moment = np.concatenate([np.sort(rng.choice(60, n, replace=False)) for n in lengths])
    item, at = rng.integers(0, 40, 3000).astype(np.int32), rng.integers(-5, 70, 3000)
    for window in (None, 1, 7):
        found = Moments(offsets, moment).any_before(item, at, window)
        low = at - (10**6 if window is None else window)
        expected = [
            bool(
                ((of := moment[offsets[i] : offsets[i + 1]]) < t).any() and (of[of < t] >= lo).any()
            )
            for i, t, lo in zip(item, at, low, strict=True)
        ]
        assert found.tolist() == expected
    assert not Moments(np.zeros(5, np.int64), moment[:0]).any_before(item[:9] % 4, at[:9], 3).any()


def test_the_warning() -> None:
    assert warning({"train": 0.1, "valid": None}) is None
    assert warning({"train": None}) is None
    text, advice = warning({"train": 0.02, "test": 0.251}) or ("", "")
    assert "train 2.0%, test 25.1%" in text
    assert 'first_events = "drop"' in advice
