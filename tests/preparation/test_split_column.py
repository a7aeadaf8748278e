"""Official splits: a column says them, across time if need be, and nothing leaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hisac_rec.config import apply_overrides, validate
from hisac_rec.data.contract import SPLITS, PreparedData
from hisac_rec.errors import UserError
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare

QUIZ: dict[str, Any] = {
    "name": "quiz",
    "clock": False,
    "source": {
        "files": ["answers.csv"],
        "events": "SELECT * FROM read_csv('{raw}/answers.csv')",
        "items": """SELECT item, any_value(topic) AS topic FROM read_csv('{raw}/answers.csv')
            GROUP BY 1""",
        "users": """SELECT "user", any_value(school) AS school
            FROM read_csv('{raw}/answers.csv') GROUP BY 1""",
    },
    "requests": {"label": "correct"},
    "split": {"by": "column", "column": "part"},
}
HEAD = "user,item,time,part,correct,topic,school"


def answers(folder: Path, seed: int = 0, users: int = 30) -> Path:
    """Answers whose split has nothing to do with their time; users after 20 are test alone."""
    rng = np.random.default_rng(seed)
    lines = [HEAD]
    for user in range(users):
        for time in range(12):
            part = "test" if user >= 20 else str(rng.choice(SPLITS, p=[0.6, 0.2, 0.2]))
            item = rng.integers(40) + (100 if part == "test" and time % 2 else 0)
            lines.append(
                f"u{user},{item},{time},{part},{rng.integers(2)},t{item // 10},s{user // 5}"
            )
    folder.mkdir(exist_ok=True)
    (folder / "answers.csv").write_text("\n".join(lines) + "\n")
    return folder


def made(raw: Path, out: Path, *overrides: str) -> PreparedData:
    definition = validate(DatasetDefinition, apply_overrides(QUIZ, overrides), "quiz.toml")
    return prepare(definition, out, raw=raw, origin="quiz.toml")


def test_every_request_sees_the_earlier_events_of_its_split_and_those_before(
    tmp_path: Path,
) -> None:
    raw = answers(tmp_path / "raw")
    data = made(raw, tmp_path / "out")
    log = [line.split(",") for line in (raw / "answers.csv").read_text().splitlines()[1:]]
    users = pq.read_table(data.root / "vocab" / "user.parquet")["value"].to_pylist()
    items = data.items["raw_id"].to_pylist()
    for index, split in enumerate(SPLITS):
        asked = 0
        for row in pq.read_table(data.root / split).to_pylist():
            mine = [e for e in log if e[0] == users[row["user"]]]
            known = [e for e in mine if SPLITS.index(e[3]) <= index]
            for request in row["requests"]:
                end = request["history_end"]
                seen = [(int(e[2]), e[1]) for e in known if int(e[2]) < request["time"]]
                stored = [items[i] for i in row["history_item"][:end]]
                assert list(zip(row["history_time"][:end], stored, strict=True)) == seen
                asked += len(request["items"])
        assert asked == sum(e[3] == split for e in log) == data.manifest.splits[split].candidates


def test_training_knows_nothing_of_the_other_splits(tmp_path: Path) -> None:
    raw = answers(tmp_path / "raw")
    now = made(raw, tmp_path / "now")
    lines = (raw / "answers.csv").read_text().splitlines()
    for index, line in enumerate(lines[1:], start=1):
        cells = line.split(",")
        if cells[3] != "train":
            cells[4] = str(1 - int(cells[4]))
            cells[2] = str(11 - int(cells[2]))
            lines[index] = ",".join(cells)
    (raw / "answers.csv").write_text("\n".join(lines) + "\n")
    later = made(raw, tmp_path / "later")
    for split in SPLITS:
        same = pq.read_table(now.root / split).equals(pq.read_table(later.root / split))
        assert same == (split == "train")
    assert now.items.equals(later.items)
    assert now.stats == later.stats
    # Items and users that only the test split knows.
    table = now.items.to_pylist()
    late = [item for item in table[1:] if int(item["raw_id"]) >= 100]
    assert late
    assert all((i["topic"], i["train_count"], i["first_time"]) == (0, 0, None) for i in late)
    schools = pq.read_table(now.root / "vocab" / "user_school.parquet")["value"].to_pylist()
    assert schools == [None, "s0", "s1", "s2", "s3"]
    in_train = pa.compute.sum(pa.compute.is_valid(now.items["first_time"])).as_py()
    log = [line.split(",") for line in lines[1:]]
    assert in_train == len({cells[1] for cells in log if cells[3] == "train"})


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("upper(part)", r"\d+ events are of split 'TEST', expected 'train', 'valid' or 'test'"),
        ("nullif(part, 'valid')", r"\d+ events are of split 'NULL'"),
        ("prt", "the SQL does not run"),
    ],
)
def test_messages(tmp_path: Path, column: str, message: str) -> None:
    raw = answers(tmp_path / "raw")
    with pytest.raises(UserError, match=rf"quiz\.toml: key 'split\.column': .*{message}"):
        made(raw, tmp_path / "out", f"split.column={column}")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
