"""Shipped definitions on small files of the publishers' formats: what becomes of each value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from raw_files import SMALL, RawFile, write

from hisac_rec.config import load_config
from hisac_rec.data.contract import SPLITS
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare
from hisac_rec.shipped import find_config


class Small:
    """The small data set of a definition, with raw ids in place of ids."""

    def __init__(self, name: str, folder: Path, *overrides: str) -> None:
        definition = load_config(DatasetDefinition, find_config("datasets", name), overrides)
        raw = folder / "raw"
        if not raw.exists():
            write(name, raw)
        self.raw: dict[str, RawFile] = {file.name: file for file in SMALL[name]()}
        self.data = prepare(definition, folder / f"data{len(overrides)}", raw=raw)
        self.items = {row["raw_id"]: row for row in self.data.items.to_pylist()}
        self._item = self.data.items["raw_id"].to_pylist()
        self._user = self.vocabulary("user")

    def vocabulary(self, name: str) -> list[str]:
        """Raw values of a feature, by id."""
        path = self.data.root / "vocab" / f"{name}.parquet"
        values: list[str] = pq.read_table(path)["value"].to_pylist()
        return values

    def feature(self, item: str, name: str) -> Any:
        """The raw value of an item's feature."""
        values, ids = self.vocabulary(name), self.items[item][name]
        return [values[i] for i in ids] if isinstance(ids, list) else values[ids]

    def requests(self, split: str) -> list[tuple[str, list[str], list[tuple[str, float]]]]:
        """(user, history that it sees, candidates with labels) of every request."""
        return [
            (
                self._user[row["user"]],
                [self._item[i] for i in row["history_item"][: request["history_end"]]],
                [
                    (self._item[i], label)
                    for i, label in zip(request["items"], request["labels"], strict=True)
                ],
            )
            for row in pq.read_table(self.data.root / split).to_pylist()
            for request in row["requests"]
        ]


def test_taobao_mm(tmp_path: Path) -> None:
    small = Small("taobao_mm", tmp_path)
    shown: dict[str, list[tuple[str, float]]] = {}
    expected: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for part in ("train", "test"):
        for label, member, item in small.raw[f"{part}_samples.parquet"].rows:
            split = "valid" if part == "train" and member % 32 == 0 else part
            shown.setdefault(f"{split} {member}", []).append((str(item), float(label[1])))
        for row in small.raw[f"{part}_user_features.parquet"].rows:
            split = "valid" if part == "train" and row[0] % 32 == 0 else part
            expected[split][f"{split} {row[0]}"] = [str(item) for item in row[6]]
    for split in SPLITS:
        found = small.requests(split)
        assert {user: history for user, history, _ in found} == expected[split]
        assert all(sorted(candidates) == sorted(shown[user]) for user, _, candidates in found)
    assert set(expected["valid"]) == {"valid 64", "valid -96"}
    # A member of both files is one value of a feature, known where training met it.
    members = small.vocabulary("user_member")
    assert members == [None, *map(str, range(101, 109))]
    item, vector = small.raw["scl_embedding_int8_p90.parquet"].rows[7]
    assert small.items[str(item)]["content"] == [float(x) for x in vector]
    last = str(small.raw["item_features.parquet"].rows[51][0])
    assert small.items[last]["content"] == [0.0] * 4
    assert not small.data.manifest.has_clock


def test_a_share_of_taobao_mm(tmp_path: Path) -> None:
    whole = Small("taobao_mm", tmp_path)
    half = Small("taobao_mm", tmp_path, "source.tables.share.select=SELECT 2 AS parts")
    even = [row for row in whole.requests("test") if int(row[0].split()[1]) % 2 == 0]
    assert half.requests("test") == even


def test_ebnerd(tmp_path: Path) -> None:
    small = Small("ebnerd", tmp_path)
    history = {
        (part, row[0]): list(zip(row[1], row[3], strict=True))
        for part in ("train", "validation")
        for row in small.raw[f"{part}/history.parquet"].rows
    }
    seen = 0
    for split, part in (("train", "train"), ("valid", "train"), ("test", "validation")):
        for user, items, candidates in small.requests(split):
            reads = set(history["train", int(user)])
            if split == "test":
                reads |= set(history["validation", int(user)])
            assert items == [str(item) for _, item in sorted(reads)]
            pages = small.raw[f"{part}/behaviors.parquet"].rows
            mine = [row for row in pages if row[8] == int(user)]
            shown = [[(str(n), float(n in row[7])) for n in row[6]] for row in mine]
            assert sorted(candidates) in [sorted(page) for page in shown]
            seen += 1
    assert seen == 28
    counts = small.data.manifest.splits
    assert [counts[split].requests for split in SPLITS] == [11, 3, 14]  # a day is valid
    assert small.items["3"]["text"] == "Overskrift 3 . ø . Sport Fodbold"
    assert small.feature("3", "topics") == ["Fodbold", "Sport"]
    assert small.items["3"]["content"] == pytest.approx([0.3, 1.0, -0.5])


def test_mind(tmp_path: Path) -> None:
    small = Small("mind", tmp_path)
    counts = small.data.manifest.splits
    assert [counts[split].requests for split in SPLITS] == [8, 4, 12]  # 12 and 13, 14, 15 November
    first = {row[1]: row[3].split() for row in small.raw["MINDsmall_train/behaviors.tsv"].rows[:4]}
    for user, history, candidates in small.requests("train"):
        assert history[: len(first[user])] == first[user]
        assert sum(label for _, label in candidates) == 1
    # The third day of train sees the clicks of the two before, in order.
    page = small.raw["MINDsmall_train/behaviors.tsv"].rows
    clicked = [
        next(n.split("-")[0] for n in row[4].split() if n.endswith("-1"))
        for row in page
        if row[1] == "U3"
    ]
    [(_, history, _)] = [row for row in small.requests("valid") if row[0] == "U3"]
    assert history == [*first["U3"], *clicked[:2]]
    assert small.items["N1"]["text"] == 'The "1" brands'
    assert small.items["N0"]["text"] == 'The "0" brands . Shop'
    vector = [float(x) for x in small.raw["MINDsmall_train/entity_embedding.vec"].rows[2][1:]]
    assert small.items["N1"]["content"] == pytest.approx(vector)
    assert small.items["N0"]["content"] == [0.0] * 100  # no entity


@pytest.mark.parametrize(
    "name",
    [
        "kuairand_27k",
        pytest.param("kuairand_1k", marks=pytest.mark.slow),
        pytest.param("kuairand_pure_csv", marks=pytest.mark.slow),
    ],
)
def test_kuairand(tmp_path: Path, name: str) -> None:
    small = Small(name, tmp_path)
    log = [row for n, file in small.raw.items() if n.startswith("log_") for row in file.rows]
    bounds = (1_650_556_800, 1_651_680_000, 1_651_766_400, 1 << 40)
    for split, low, high in zip(SPLITS, bounds, bounds[1:], strict=False):
        rows = [row for row in log if low <= row[4] // 1000 < high]
        counts = small.data.manifest.splits[split]
        assert (counts.candidates, counts.positives) == (len(rows), sum(row[5] for row in rows))
    _, history, _ = small.requests("train")[0]
    before = [row for row in log if row[0] == 0 and row[4] // 1000 < bounds[0] and row[5]]
    assert history == [str(row[1]) for row in sorted(before, key=lambda row: row[4])]
    assert small.items["5"]["text"] == "#5 王者荣耀, 妲己"
    assert small.feature("3", "tag") == ["12", "65"]


def test_movielens_latest(tmp_path: Path) -> None:
    small = Small("movielens_latest", tmp_path)
    assert sum(small.data.manifest.splits[split].candidates for split in SPLITS) == 68
    user, history, [(item, label)] = small.requests("test")[0]
    ratings = sorted(
        (row for row in small.raw["ratings.csv"].rows if str(row[0]) == user), key=lambda r: r[3]
    )
    *earlier, (_, last, rating, _) = ratings[:23]
    assert history == [str(row[1]) for row in earlier]
    assert small.data.manifest.event_types == ["rating 3.0", "rating 5.0"]
    assert (item, label) == (str(last), float(rating >= 4))
    assert small.items["1"]["text"] == "American President, The . Comedy Drama . 1990s"
    # Tags given while the first 80 % of the ratings were made; the one of 2038 is left out.
    assert small.items["2"]["text"].endswith(". 1990s . pixar . will ferrell, again")
    assert small.items["3"]["text"] == "No Year . Comedy Drama"
    assert small.feature("40", "genre") == [None]
