"""Definitions of logs of positives and of Taobao's ads, on small files of the original formats."""

from __future__ import annotations

import calendar
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from raw_files import SMALL, write

from hisac_rec.config import load_config
from hisac_rec.data.contract import SPLITS, PreparedData, Split
from hisac_rec.errors import UserError
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare
from hisac_rec.shipped import find_config


def made(name: str, tmp_path: Path, *overrides: str) -> PreparedData:
    path = find_config("datasets", name)
    raw = write(name, tmp_path / "raw")
    return prepare(load_config(DatasetDefinition, path, list(overrides)), tmp_path / "out", raw=raw)


def rows_of(name: str, file: str) -> list[tuple[Any, ...]]:
    return next(f.rows for f in SMALL[name]() if f.name == file)


def values(data: PreparedData, feature: str) -> list[Any]:
    return pq.read_table(data.root / "vocab" / f"{feature}.parquet")["value"].to_pylist()


def requests(data: PreparedData, split: Split) -> list[dict[str, Any]]:
    """Each request with raw ids: its user, the history it sees, its candidates by label."""
    users, items = values(data, "user"), data.items["raw_id"].to_pylist()
    types = data.manifest.event_types
    found = []
    for row in pq.read_table(data.root / split).to_pylist():
        for request in row["requests"]:
            end = request["history_end"]
            history = zip(row["history_item"][:end], row["history_type"][:end], strict=True)
            found.append(
                {
                    "user": users[row["user"]],
                    "time": request["time"],
                    "history": [(items[i], types[t]) for i, t in history],
                    "shown": [
                        (items[i], label)
                        for i, label in zip(request["items"], request["labels"], strict=True)
                    ],
                }
            )
    return found


@pytest.mark.parametrize("name", ["amazon_2023", "amazon_2023_ratings"])
def test_amazon(tmp_path: Path, name: str) -> None:
    data = made(name, tmp_path)
    if name == "amazon_2023":
        reviews = [json.loads(line) for (line,) in rows_of(name, "Video_Games.jsonl")]
        log = {(r["user_id"], r["parent_asin"], r["timestamp"] // 1000) for r in reviews}
    else:
        log = {(u, i, at // 1000) for u, i, _, at in rows_of(name, "Video_Games.csv")}
    bounds = {"train": (0, 1628643414), "valid": (1628643414, 1658002729)}
    bounds["test"] = (1658002729, 1 << 60)
    for split in SPLITS:
        low, high = bounds[split]
        made_of = requests(data, split)
        for request in made_of:
            earlier = {(i, at) for u, i, at in log if u == request["user"] and at < request["time"]}
            assert {i for i, _ in request["history"]} == {i for i, _ in earlier}
            assert len(earlier) >= 3
            [(bought, one), *drawn] = request["shown"]
            assert one == 1
            assert (request["user"], bought, request["time"]) in log
            assert len(drawn) == 4
            assert not {i for i, _ in drawn} & {i for i, _ in earlier}
        enough = [
            sum(v == u and t < at for v, _, t in log) >= 3 for u, _, at in log if low <= at < high
        ]
        assert len(made_of) == sum(enough)
    assert data.manifest.event_types == [f"rating {n}" for n in range(1, 6)]
    if name == "amazon_2023":
        by_id = {item["raw_id"]: item for item in data.items.to_pylist()}
        pad = by_id["B000000001"]
        assert pad["text"] == "Pad, 1 . Video Games Accessories Pads . Nintendo . Wired"
        assert [values(data, "category")[c] for c in pad["category"]] == ["Accessories", "Pads"]
        assert values(data, "price")[pad["price"]] == "9"  # 2 log2(1 + 19.99)
        prices = {by_id[f"B{n:09d}"]["price"] for n in (0, 2, 3)}
        assert prices == {0}  # none, "from 14.99", a dash
        assert by_id["B000000029"]["text"] == ""  # reviewed, not in the catalogue


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (b'{"rating": 5.0, "title": "caf\xe9"}', "invalid UTF-8"),
        (b'{"rating": 5.0, "user_id": "AE', "unexpected"),
        (b'{"rating": "five", "user_id": "AE1"}', "five"),
    ],
)
def test_a_record_that_is_none_is_named(tmp_path: Path, broken: bytes, says: str) -> None:
    path = write("amazon_2023", tmp_path / "raw") / "Video_Games.jsonl"
    lines = path.read_bytes().splitlines()
    lines[6] = broken
    path.write_bytes(b"\n".join(lines) + b"\n")
    definition = load_config(DatasetDefinition, find_config("datasets", "amazon_2023"))
    with pytest.raises(UserError, match=f"Video_Games.jsonl, line 7: .*{says}"):
        prepare(definition, tmp_path / "out", raw=path.parent)


def test_userbehavior(tmp_path: Path) -> None:
    data = made("taobao_userbehavior", tmp_path)
    rows = set(rows_of("taobao_userbehavior", "UserBehavior.csv"))
    clean = {row for row in rows if 1511539200 <= row[4] < 1512316800}
    assert len(rows) - len(clean) == 3
    assert data.manifest.event_types == ["cart", "pv"]
    for split in SPLITS:
        for request in requests(data, split):
            user, time = int(request["user"]), request["time"]
            seen = [(str(r[1]), r[3]) for r in clean if r[0] == user and r[4] < time]
            assert sorted(request["history"]) == sorted(seen)
            [(viewed, one), (drawn, none)] = request["shown"]
            assert (one, none) == (1, 0)
            assert any(r[:2] == (user, int(viewed)) and r[3:] == ("pv", time) for r in clean)
            day = {str(r[1]) for r in clean if r[3] == "pv" and time - 86400 <= r[4] < time}
            assert drawn in day
    kept = sum(data.manifest.splits[split].positives for split in SPLITS)
    views = [r for r in clean if r[3] == "pv"]
    assert kept == sum(sum(o[0] == r[0] and o[4] < r[4] for o in clean) >= 5 for r in views)


def test_ads(tmp_path: Path) -> None:
    data = made("taobao_ads", tmp_path)
    shown = rows_of("taobao_ads", "raw_sample.csv")
    behaviors = rows_of("taobao_ads", "behavior_log.csv")
    for split, (low, high) in {
        "train": (0, 1494518400),
        "valid": (1494518400, 1494604800),
        "test": (1494604800, 1 << 60),
    }.items():
        found = requests(data, split)  # type: ignore[arg-type]
        expected = [r for r in shown if low <= r[1] < high]
        assert sorted((int(q["user"]), q["time"], *q["shown"]) for q in found) == sorted(
            (u, at, (f"ad {ad}", float(clk))) for u, at, ad, _, _, clk in expected
        )
        for request in found:
            user, time = int(request["user"]), request["time"]
            seen = [
                (f"{cate}/{brand}", kind)
                for u, at, kind, cate, brand in behaviors
                if u == user and at < time
            ]
            seen += [
                (f"ad {ad}", "clicked ad")
                for u, at, ad, _, _, clk in shown
                if u == user and clk and at < time
            ]
            assert sorted(request["history"]) == sorted(seen)
    by_id = {item["raw_id"]: item for item in data.items.to_pylist()}
    assert by_id["ad 4"]["category"] == by_id["6000/900"]["category"] > 0  # one table for both
    assert by_id["ad 5"]["brand"] == 0  # NULL in the file
    assert by_id["ad 12"]["category"] == 0  # shown, without features
    assert values(data, "user_city_level") == [None, "4"]


def test_steam(tmp_path: Path) -> None:
    data = made("steam", tmp_path)
    assert data.manifest.users == 6
    assert set(values(data, "user")) == {
        None,
        "Chaos Syren",
        "Sid's",
        "\\u2122x",
        "a\\'b\"c",
        "zed",
    }
    assert data.manifest.event_types == ["early access", "released"]
    by_id = {item["raw_id"]: item for item in data.items.to_pylist()}
    game = by_id["703"]
    assert game["text"] == "Game 703 . Indie RPG . Tower Defense Beat 'em up . INGAME"
    assert [values(data, "tag")[t] for t in game["tag"]] == ["Beat 'em up", "Tower Defense"]
    assert values(data, "publisher")[game["publisher"]] == "Making Fun, Inc."
    assert values(data, "price")[game["price"]] == "8"  # 2 log2(1 + 14.99)
    assert by_id["702"]["price"] == 0  # Free To Play
    assert by_id["724"]["text"] == ""  # reviewed, not listed
    for split in SPLITS:
        for request in requests(data, split):
            [(_, one), *drawn] = request["shown"]
            assert one == 1
            assert not {i for i, _ in drawn} & {i for i, _ in request["history"]}
    [last] = [q for q in requests(data, "test") if q["user"] == "zed"]
    assert len(last["history"]) == 15


@pytest.mark.parametrize("name", ["microvideo", "kuaivideo"])
def test_longctr(tmp_path: Path, name: str) -> None:
    data = made(name, tmp_path)
    clicks = dict(rows_of(name, "user_info.parquet"))
    for split in SPLITS:
        rows = rows_of(name, f"{split}.parquet")
        expected: dict[tuple[int, int], list[tuple[str, float]]] = {}
        for user, item, seen, label in rows:
            expected.setdefault((user, seen), []).append((str(item), label))
        found = requests(data, split)
        assert len(found) == len(expected)
        for request in found:
            user, seen = int(request["user"]), request["time"]
            assert request["history"] == [(str(i), "click") for i in clicks[user][:seen]]
            assert sorted(request["shown"]) == sorted(expected[user, seen])
    # Users and videos are numbered as text: raw ids are row numbers of the two files.
    by_id = {item["raw_id"]: item for item in data.items.to_pylist()}
    assert by_id["7"]["content"] == [7 / 64 + d for d in range(64)]
    assert "0" not in by_id
    # What only a later split sees is unknown in training.
    seen_in_training = {i for seq in clicks.values() for i in seq[:19]}
    seen_in_training |= {r[1] for r in rows_of(name, "train.parquet")}
    known = {
        int(i["raw_id"]) for i in by_id.values() if i["raw_id"] and i["first_time"] is not None
    }
    assert known == seen_in_training
    assert [f.name for f in data.manifest.item_features] == (
        ["item_id", "category"] if name == "microvideo" else ["item_id"]
    )


def test_care(tmp_path: Path) -> None:
    data = made("care_events", tmp_path, "features.min_count={static=2}")
    files = ("data/train/0.parquet", "data/held_out/0.parquet")
    log = {
        (subject, calendar.timegm(at.timetuple()), code)
        for file in files
        for subject, at, code, _ in rows_of("care_events", file)
        if at is not None
    }
    assert data.manifest.event_types == ["negative value", "noted", "value of 10^1", "zero"]
    candidates = set()
    for split in SPLITS:
        for request in requests(data, split):
            subject, time = int(request["user"]), request["time"]
            noted = {code for code, label in request["shown"] if label == 1}
            drawn = {code for code, label in request["shown"] if label == 0}
            assert not drawn & (noted | {"MEDS_BIRTH"})
            candidates |= {(subject, time, code) for code in noted}
            seen = [code for s, at, code in log if s == subject and at < time]
            assert sorted(code for code, _ in request["history"]) == sorted(seen)
            assert request["history"][0] == ("MEDS_BIRTH", "noted")
    # All but births and each subject's first five codes: the first two visits and no more.
    firsts = {s: sorted({at for o, at, _ in log if o == s})[:3] for s, _, _ in log}
    assert candidates == {row for row in log if row[1] not in firsts[row[0]]}
    assert set(values(data, "user_static")) == {None, "GENDER//F", "GENDER//M"}
    by_id = {item["raw_id"]: item for item in data.items.to_pylist()}
    assert [by_id[code]["text"] for code in ("GENDER//F", "GENDER//M")] == [
        "GENDER//F",
        "about GENDER//M",
    ]
    assert values(data, "vocabulary")[by_id["LAB//3"]["vocabulary"]] == "LAB"
    assert data.manifest.splits["train"].positives > data.manifest.splits["test"].positives > 0


def test_assistments(tmp_path: Path) -> None:
    data = made("assistments_2009", tmp_path)
    rows = rows_of("assistments_2009", "skill_builder_data.csv")
    answers = {(r[2], r[0]): (str(r[4]), r[6], r[26]) for r in rows if r[5]}
    assert len(answers) < sum(bool(r[5]) for r in rows)  # some problems train two skills
    types = {(1, 0): "right", (0, 0): "wrong", (0, 1): "hint"}
    found = {}
    for split in SPLITS:
        for request in requests(data, split):
            pupil, time = int(request["user"]), request["time"]
            seen = [answers[key] for key in sorted(answers) if key[0] == pupil and key[1] < time]
            assert request["history"] == [(item, types[right, hint]) for item, right, hint in seen]
            [found[pupil, time]] = request["shown"]
    assert len(found) == len(answers) - 4 * 5
    assert all(answers[key][:2] == answer for key, answer in found.items())
    by_id = {item["raw_id"]: item for item in data.items.to_pylist()}
    assert by_id["51406"]["text"] == "Ordering, Fractions . Pattern Finding"
    known = [values(data, "skill")[skill] for skill in by_id["51406"]["skill"]]
    assert known == ["Ordering, Fractions", "Pattern Finding"]
    assert by_id["51405"]["skill"] == [0]
