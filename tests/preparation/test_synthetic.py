"""What the generator plants is really there, and really hidden from the newest events."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from hisac_rec.config import load_config
from hisac_rec.preparation.blocks import EventBlock, visible_history
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.synthetic import PERIOD, START, TEST_FROM, VALID_FROM, SyntheticSource
from hisac_rec.preparation.synthetic_config import SyntheticConfig
from hisac_rec.shipped import find_config


@pytest.fixture(scope="module")
def shipped() -> tuple[SyntheticSource, EventBlock]:
    """The shipped definition, its first 512 users."""
    definition = load_config(DatasetDefinition, find_config("datasets", "synthetic"))
    assert definition.synthetic is not None
    source = SyntheticSource(definition.synthetic)
    return source, next(source.blocks())


def _known(block: EventBlock) -> NDArray[np.float32]:
    assert block.probability is not None
    return block.probability


def test_oracle_is_strong_and_items_alone_are_weak(
    shipped: tuple[SyntheticSource, EventBlock],
) -> None:
    source, block = shipped
    asked = block.is_candidate
    label = block.label[asked]
    no_history = source.quality[block.item] + (
        source.config.user_bias_scale * source.user_bias[block.user]
    )
    assert 0.80 < roc_auc_score(label, _known(block)[asked]) < 0.88
    assert roc_auc_score(label, no_history[asked]) < 0.64
    assert label.mean() == pytest.approx(_known(block)[asked].mean(), abs=0.01)


def _counted(
    source: SyntheticSource, block: EventBlock, asked: NDArray[np.int64], newest: int, enough: int
) -> NDArray[np.float64]:
    """Affinity told from how often the true leaf, or its parent, occurs in the history."""
    config, leaf = source.config, source.leaf[block.item]
    history = np.flatnonzero(block.is_history)
    first = np.searchsorted(history, np.searchsorted(block.user, block.user))
    visible = visible_history(block)
    told = np.zeros(len(asked))
    for place, event in enumerate(asked):
        end = first[event] + visible[event]
        past = leaf[history[max(first[event], end - newest) : end]]
        siblings = past // config.branches[-1] == leaf[event] // config.branches[-1]
        if (past == leaf[event]).sum() >= enough:
            told[place] = 0.95
        elif siblings.sum() >= enough + len(past) // 50:
            told[place] = config.sibling_affinity
    return told


def test_history_tells_most_and_its_newest_events_much_less(
    shipped: tuple[SyntheticSource, EventBlock],
) -> None:
    """Shares of the way from no history to the oracle, as docs/data-contract.md has them."""
    source, block = shipped
    asked = np.flatnonzero(block.is_candidate & (block.split == 2))
    label = block.label[asked]
    user_bias = source.config.user_bias_scale * source.user_bias[block.user]
    base = (source.quality[block.item] + user_bias)[asked]
    start = roc_auc_score(label, base)
    whole_way = roc_auc_score(label, _known(block)[asked]) - start

    def share(newest: int, enough: int) -> float:
        told = _counted(source, block, asked, newest, enough)
        reached = roc_auc_score(label, base + source.config.gain * told)
        return float((reached - start) / whole_way)

    assert share(10_000, 3) > 0.93
    assert 0.4 < share(50, 2) < 0.65


def test_content_gives_the_tree_away(shipped: tuple[SyntheticSource, EventBlock]) -> None:
    source, _ = shipped
    content, leaf = source.content[1:], source.leaf[1:]
    centres = np.stack([content[leaf == node].mean(0) for node in range(source.config.leaves)])
    squared = (centres**2).sum(1) - 2 * content @ centres.T
    assert np.mean(squared.argmin(1) == leaf) > 0.95
    branch = np.arange(source.config.leaves) // source.config.branches[-1]
    gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    same = branch[:, None] == branch[None]
    np.fill_diagonal(gaps, np.nan)
    assert np.nanmean(gaps[same]) < 0.7 * np.nanmean(gaps[~same])


def test_nothing_happens_before_its_time(shipped: tuple[SyntheticSource, EventBlock]) -> None:
    source, block = shipped
    assert (source.release[block.item] <= block.time).all()
    assert (source.release[1:] > START + PERIOD * VALID_FROM).sum() > 20  # cold items exist
    share = (block.time - START) / PERIOD
    assert (block.split == (share >= VALID_FROM).astype(int) + (share >= TEST_FROM)).all()
    assert (np.diff(block.user) >= 0).all()
    same_user = np.diff(block.user) == 0
    assert (np.diff(block.time)[same_user] >= 0).all()


def test_lengths_and_requests_are_as_asked() -> None:
    config = SyntheticConfig(
        users=700, length_min=1, length_median=3000, length_max=10_000, length_sigma=2.0
    )
    blocks = list(SyntheticSource(config).blocks())
    user = np.concatenate([b.user[b.is_history] for b in blocks])
    lengths = np.bincount(user, minlength=701)[1:]
    assert lengths.min() >= 1
    assert lengths.max() == 10_000
    assert 2000 < np.median(lengths) < 4500
    asked = np.concatenate([b.user[b.is_candidate] for b in blocks])
    requests = config.train_requests + config.valid_requests + config.test_requests
    assert (np.bincount(asked)[1:] == requests * config.candidates).all()


def test_seed_decides_everything() -> None:
    def first(**changes: int) -> EventBlock:
        config = SyntheticConfig(**{"users": 600, "length_median": 200, **changes})  # type: ignore[arg-type]
        return next(SyntheticSource(config).blocks())

    one, again, other = first(), first(), first(seed=1)
    assert np.array_equal(one.item, again.item)
    assert np.array_equal(one.label, again.label)
    assert not np.array_equal(one.item, other.item)


@pytest.mark.parametrize("branches", [[64], [4, 4, 4]])
def test_any_depth_and_no_tail(branches: list[int]) -> None:
    config = SyntheticConfig(
        users=20,
        items=100,
        branches=branches,
        tail_interests=0,
        tail_weight=0.0,
        tail_candidates=0.0,
    )
    block = next(SyntheticSource(config).blocks())
    assert block.is_candidate.any()
    assert block.item.min() >= 1
    assert block.item.max() <= 100
