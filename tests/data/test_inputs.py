"""What a model asks for against what a data set has."""

from __future__ import annotations

from typing import Any

import pytest
from builders import write_prepared

from hisac_rec.data.contract import Feature, Manifest
from hisac_rec.data.inputs import InputConfig, InputSpec, build_input_spec
from hisac_rec.errors import UserError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_prepared(
        tmp_path_factory.mktemp("inputs"),
        items=20,
        users=0,
        user_features=[Feature(name="age", rows=7), Feature(name="sex", rows=3)],
        item_features=[Feature(name="brand", rows=9), Feature(name="tags", rows=5, multi=True)],
    ).manifest


def spec(manifest: Manifest, codes: tuple[int, ...] = (3, 4, 5), **keys: Any) -> InputSpec:
    return build_input_spec(InputConfig(**keys), manifest, codes)


def keys(found: InputSpec, side: Any) -> list[str]:
    return [lookup.key for lookup in found.of_side(side)]


def test_defaults_take_everything(manifest: Manifest) -> None:
    found = spec(manifest)
    assert keys(found, "user") == ["user", "user.age", "user.sex"]
    assert keys(found, "candidate") == [
        *("candidate.item", "candidate.brand", "candidate.tags"),
        *("candidate.sid1", "candidate.sid2", "candidate.sid3"),
        *("candidate.prefix2", "candidate.prefix3"),
    ]
    assert keys(found, "history") == [
        "history.item",
        *("history.sid1", "history.sid2", "history.sid3"),
    ]


def test_both_sides_read_one_table(manifest: Manifest) -> None:
    tables = spec(manifest).tables()
    assert [lookup.key for lookup in tables["item"]] == ["candidate.item", "history.item"]
    rows = {name: {lookup.rows for lookup in lookups} for name, lookups in tables.items()}
    assert rows["prefix2"] == {13}  # one for items without a place
    assert rows["prefix3"] == {61}
    assert rows["sid3"] == {6}
    assert rows["item"] == {20}
    assert all(len(sizes) == 1 for sizes in rows.values())


def test_a_star_adds_what_was_not_named(manifest: Manifest) -> None:
    assert keys(spec(manifest, user=["sex", "*"]), "user") == ["user.sex", "user.age"]
    assert keys(spec(manifest, user=[]), "user") == []


@pytest.mark.parametrize(
    ("codes", "wanted", "message"),
    [
        ((3,), {"user": ["agee"]}, r"inputs.user: .* no feature 'agee'; did you mean 'age'"),
        ((3,), {"history": ["brnd"]}, r"inputs.history: .*'brnd'; did you mean 'brand'"),
        ((), {"history": ["sid"]}, "asks for 'sid', but the data set has no semantic ids"),
        ((2**16, 2**16), {}, r"table prefix2 would need 4,294,967,297 rows"),
    ],
)
def test_messages(
    manifest: Manifest, codes: tuple[int, ...], wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        spec(manifest, codes, **({"candidate": ["id"]} if not codes else {}), **wanted)
