"""Several labels from a definition to prepared rows, and which of them a model takes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from planted_tasks import PAGE, TASKS, USERS, planted_definition, planted_log

from hisac_rec.data.contract import SPLITS, Manifest, PreparedData
from hisac_rec.data.tasks import TaskConfig, resolve_tasks
from hisac_rec.data.validate import validate_prepared
from hisac_rec.errors import UserError
from hisac_rec.preparation import rawlog, users
from hisac_rec.preparation.prepare import prepare
from hisac_rec.preparation.writer import SplitWriter


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_log(tmp_path_factory.mktemp("planted") / "raw")


@pytest.fixture(scope="module")
def data(raw: Path) -> PreparedData:
    return prepare(planted_definition(*TASKS), raw.parent / "tasks", raw=raw)


@pytest.fixture(scope="module")
def plain(raw: Path) -> PreparedData:
    return prepare(planted_definition(), raw.parent / "plain", raw=raw)


def test_every_candidate_has_its_labels(raw: Path, data: PreparedData) -> None:
    names = data.read_parquet("vocab/user.parquet")["value"].to_pylist()
    items = data.items["raw_id"].to_pylist()
    log = duckdb.execute(
        f"SELECT \"user\", time, item, clicked, liked, bought FROM '{raw}/log.parquet'"
    ).fetchall()
    wanted = sorted(
        (u, t, i, float(c), float(liked), float(b) if c else None) for u, t, i, c, liked, b in log
    )
    found = []
    for split in SPLITS:
        for row in pq.read_table(data.root / split).to_pylist():
            for one in row["requests"]:
                labels = (one[key] for key in ("labels", "labels_like", "labels_purchase"))
                for item, *of in zip(one["items"], *labels, strict=True):
                    found.append((int(names[row["user"]]), one["time"], int(items[item]), *of))
    key = lambda row: tuple(-1.0 if value is None else value for value in row)  # noqa: E731
    assert sorted(found, key=key) == sorted(wanted, key=key)
    for task, place in (("like", 4), ("purchase", 5)):
        (counted,) = [one for one in data.manifest.tasks if one.name == task]
        labels = [row[place] for row in wanted if row[place] is not None]
        assert sum(counted.labelled.values()) == len(labels)
        assert sum(counted.positives.values()) == sum(labels)
    assert data.manifest.task_names == ["click", "like", "purchase"]
    validate_prepared(data.root)


def test_without_further_tasks_nothing_is_new(data: PreparedData, plain: PreparedData) -> None:
    written = json.loads((plain.root / "manifest.json").read_text())
    assert not {"task", "tasks"} & written.keys()
    assert not {"task", "tasks"} & written["definition"]["requests"].keys()
    assert Manifest.model_validate(written).task_names == ["label"]
    assert data.manifest.fingerprint != plain.manifest.fingerprint
    for split in SPLITS:
        with_tasks, without = (pq.read_table(d.root / split) for d in (data, plain))
        rows = with_tasks.to_pylist()
        for row in rows:
            for request in row["requests"]:
                del request["labels_like"], request["labels_purchase"]
        assert rows == without.to_pylist()


def test_the_order_of_the_raw_rows_changes_nothing(tmp_path: Path, data: PreparedData) -> None:
    raw = planted_log(tmp_path / "raw", order=1)
    again = prepare(planted_definition(*TASKS), tmp_path / "out", raw=raw)

    def digests(root: Path) -> dict[str, str]:
        files = sorted(root.rglob("*.*"))
        return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    assert digests(again.root) == digests(data.root)


def test_killed_between_blocks(
    raw: Path, tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts of tasks go on as well."""
    monkeypatch.setattr(rawlog, "BLOCK_EVENTS", 600)
    monkeypatch.setattr(users, "SAVE_BLOCKS", 2)
    write, calls = SplitWriter.write, []

    def dies(self: SplitWriter, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 14:  # the fifth block of seven
            raise KeyboardInterrupt
        write(self, *arguments)

    monkeypatch.setattr(SplitWriter, "write", dies)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(planted_definition(*TASKS), out, raw=raw)
    again = prepare(planted_definition(*TASKS), out, raw=raw)
    assert again.manifest == data.manifest
    assert len(calls) < 14 + 20  # of 24: it did not begin anew


def test_tasks_do_not_apply_to_drawn_non_events(raw: Path, tmp_path: Path) -> None:
    drawn = "requests.negatives={per_positive=2}"
    data = prepare(planted_definition(*TASKS, drawn), tmp_path / "out", raw=raw)
    requests = [r for row in pq.read_table(data.root / "test").to_pylist() for r in row["requests"]]
    liked = np.concatenate([r["labels_like"] for r in requests]).astype(float)
    label = np.concatenate([r["labels"] for r in requests])
    (like,) = [task for task in data.manifest.tasks if task.name == "like"]
    assert np.isnan(liked).sum() == 2 * label.sum()  # as many as were drawn
    assert not label[np.isnan(liked)].any()
    assert like.labelled["test"] == np.isfinite(liked).sum() == USERS * 3 * PAGE


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('requests.tasks.like="lked"', "planted.toml: key 'requests.tasks.like': "),
        ('requests.tasks.like="page"', "requests.tasks.like': .*: 4,320 candidates have a label"),
        ("requests.tasks.like=\"'a'\"", "requests.tasks.like': is VARCHAR, expected BOOLEAN or"),
        ('requests.tasks.like="NULL::FLOAT"', "tasks.like': is NULL for all candidates of the tr"),
    ],
)
def test_wrong_expressions(raw: Path, tmp_path: Path, override: str, message: str) -> None:
    definition = planted_definition(override)
    with pytest.raises(UserError, match=f"(?s){message.replace('(', '.')}"):
        prepare(definition, tmp_path / "out", raw=raw, origin="planted.toml")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (('requests.tasks.Like="liked"',), "tasks.Like: expected a name of lower-case letters"),
        (('requests.tasks.label="liked"',), "tasks.label: is the name of the main task"),
        (('requests.task="like"', 'requests.tasks.like="liked"'), "tasks.like: is the name of"),
        (('requests.task="my click"',), "requests.task"),
    ],
)
def test_wrong_names(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planted_definition(*overrides)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["labels_like"].__setitem__(0, 1.5), r"label 1.5 of task 'like' is outside"),
        (lambda r: r["labels_like"].__setitem__(0, float("nan")), "label nan of task 'like'"),
        (lambda r: r["labels_like"].pop(), "items and labels_like differ in number"),
        (lambda r: r["labels"].__setitem__(0, None), "label nan is outside"),
    ],
)
def test_damage_is_found(data: PreparedData, tmp_path: Path, change: Any, message: str) -> None:
    root = Path(shutil.copytree(data.root, tmp_path / "data"))
    (path,) = (root / "test").glob("*.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows[3]["requests"][0])
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(UserError, match=message):
        validate_prepared(root)


def names(data: PreparedData, **keys: Any) -> list[str]:
    return [task.name for task in resolve_tasks(TaskConfig(**keys), data.manifest)]


def test_a_model_takes_the_main_task_unless_told(data: PreparedData, plain: PreparedData) -> None:
    assert names(plain) == names(plain, train=["*"]) == ["label"]
    assert names(data) == ["click"]
    assert names(data, train=["*"]) == ["click", "like", "purchase"]
    assert names(data, train=["purchase", "*"]) == ["purchase", "click", "like"]
    assert names(data, train=["like"]) == ["like"]
    click, purchase = resolve_tasks(
        TaskConfig(train=["click", "purchase"], weights={"purchase": 0.5}), data.manifest
    )
    assert (click.field, click.masked, click.weight) == ("labels", False, 1.0)
    assert (purchase.field, purchase.masked, purchase.weight) == ("labels_purchase", True, 0.5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train": ["clck"]}, "no task 'clck'; did you mean 'click'"),
        ({"train": ["like", "like"]}, "'like' is named twice"),
        ({"train": ["like"], "weights": {"click": 2.0}}, "tasks.weights: 'click' does not train"),
        ({"over_layers": {"lik": [4]}}, "tasks.over_layers: .* no task 'lik'"),
    ],
)
def test_wrong_tasks_of_a_model(data: PreparedData, keys: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        names(data, **keys)


def test_what_is_read_of_a_unit(data: PreparedData) -> None:
    from hisac_rec.data.inputs import InputConfig, build_input_spec
    from hisac_rec.data.units import concat_tables, list_units, read_unit

    tasks = resolve_tasks(TaskConfig(train=["purchase", "like"]), data.manifest)
    config = InputConfig(candidate=["id"], history=["id"])
    spec = build_input_spec(config, data.manifest, (), tasks=tasks)
    units = list_units(data, "valid", shards=2)
    table = concat_tables([read_unit(unit, data.manifest, spec) for unit in units])
    rows = pq.read_table(data.root / "valid").to_pylist()
    requests = [request for row in rows for request in row["requests"]]
    bought = [label for one in requests for label in one["labels_purchase"]]
    np.testing.assert_array_equal(
        table.candidate_label, np.array([np.nan if label is None else label for label in bought])
    )
    assert list(table.candidate_tasks) == ["like"]
    liked = [label for one in requests for label in one["labels_like"]]
    assert table.candidate_tasks["like"].tolist() == liked
    some = table.take(np.array([5, 2]))
    wanted = [*requests[5]["labels_like"], *requests[2]["labels_like"]]
    assert some.candidate_tasks["like"].tolist() == wanted
