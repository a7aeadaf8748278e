"""Real files: what is found in them, and ``prepare`` accepts the definition as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from propose.logs import codes

from hisac_rec.propose.look import Looked, propose
from hisac_rec.propose.proposal import Options


def found_in(tmp_path: Path, *events: Path, **options: Any) -> Looked:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return propose(Options(events, **options), tmp_path / "found.toml", scratch)


def roles(found: Looked) -> dict[str, str]:
    log = found.proposal.log
    sql = {choice.role: choice.sql for choice in (log.user, log.item, log.time)}
    return sql | {"label": log.label.sql, "group": found.proposal.group}


def test_movielens_with_names(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "ml-latest-small"
    found = found_in(tmp_path, folder / "ratings.csv", items=folder / "movies.csv")
    assert roles(found) == {
        "user": "userId", "item": "movieId", "time": "timestamp", "label": "rating >= 4",
        "group": "event",
    }  # fmt: skip
    assert found.proposal.split.by == "user_fraction"  # most users come once
    assert [f.name for f in found.manifest.item_features] == ["genres"]
    assert found.manifest.item_features[0].multi
    assert found.manifest.has_text
    assert found.concerns == []
    assert found.manifest.splits["train"].candidates > 70_000


def test_movielens_without_a_header(shared_data: Path, tmp_path: Path) -> None:
    found = found_in(tmp_path, shared_data / "ml-100k" / "u.data")
    assert roles(found) == {
        "user": "column0", "item": "column1", "time": "column3", "label": "column2 >= 4",
        "group": "event",
    }  # fmt: skip
    assert codes(found) == ["guessed", "guessed", "ties"]
    assert found.manifest.users == 944


@pytest.mark.slow
def test_short_video(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "kuairand-pure-slice"
    found = found_in(
        tmp_path, folder / "val.parquet", folder / "test.parquet",
        items=folder / "item_features.parquet", users=folder / "user_features.parquet",
    )  # fmt: skip
    assert roles(found) == {
        "user": "user_id", "item": "video_id", "time": "time_ms // 1000", "label": "is_click = 1",
        "group": "event",
    }  # fmt: skip
    assert found.proposal.split.by == "time"
    features = {feature.name for feature in found.manifest.item_features}
    assert {"author_id", "tag", "upload_type", "video_duration"} <= features
    assert found.definition.requests is not None
    tasks = found.definition.requests.tasks or {}
    assert {"follow", "finish"} <= set(tasks)
    assert len({"like", "is_like"} & set(tasks)) == 1  # is_like and like are one and the same
    assert not {"like_cnt", "play_progress", "counts"} & features
    text = {concern.code: concern.text for concern in found.concerns}
    assert "play_time_ms" in text["label-leak"]
    assert "item-sums" in text


@pytest.mark.slow
def test_retail(shared_data: Path, tmp_path: Path) -> None:
    found = found_in(tmp_path, shared_data / "online-retail" / "online-retail.csv.gz")
    assert roles(found)["user"] == "CustomerID::BIGINT"
    assert roles(found)["item"] == "StockCode"
    assert found.proposal.group == "request"  # InvoiceNo
    assert found.manifest.has_text
    assert [f.name for f in found.manifest.user_features] == ["country"]
    assert {"positives-alone", "null-users", "time-zone"} <= set(codes(found))


def test_news_with_lists(shared_data: Path, tmp_path: Path) -> None:
    found = found_in(tmp_path, shared_data / "ebnerd-test" / "behaviors.parquet")
    assert roles(found)["item"] == "shown_item"
    assert roles(found)["label"] == "taken"
    assert found.proposal.log.group is not None
    assert found.proposal.log.group.columns == ("impression_id",)
    assert found.figures.rows_read == 10_848  # every article of every impression
    assert found.figures.rate == pytest.approx(1047 / 10_848)
    assert "positives-alone" not in codes(found)
