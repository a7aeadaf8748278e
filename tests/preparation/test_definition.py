"""Definitions that make no sense are refused with a line that says why."""

from __future__ import annotations

import pytest

from hisac_rec.config import load_config, validate
from hisac_rec.errors import UserError
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.shipped import find_config, shipped_names

SOURCE = {"files": ["a.csv"], "events": "SELECT 1"}
REQUESTS = {"label": "true"}


@pytest.mark.parametrize("name", shipped_names("datasets"))
def test_shipped_definitions_are_valid(name: str) -> None:
    assert load_config(DatasetDefinition, find_config("datasets", name)).name == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": None}, r"exactly one of the tables \[source\] and \[synthetic\]"),
        ({"synthetic": {}}, r"exactly one of the tables"),
        ({"requests": None}, r"needs a \[requests\] table"),
        ({"name": "My Data"}, "key 'name' = 'My Data'"),
        ({"sorce": {}}, "unknown key 'sorce'; did you mean 'source'"),
        ({"split": {"by": "time"}}, "needs valid_from and test_from"),
        ({"split": {"by": "time", "valid_from": 9, "test_from": 3}}, "before test_from"),
        ({"split": {"train": 0.9, "valid": 0.1}}, "leaves nothing for test"),
        ({"split": {"by": "column"}}, "by = 'column' needs column"),
        ({"split": {"column": "part"}}, "column needs by = 'column'"),
        ({"requests": {**REQUESTS, "group": "s", "group_events": 2}}, "group = 'event'"),
        ({"requests": {**REQUESTS, "label": None}}, "key 'requests.label'"),
        (
            {"source": {**SOURCE, "tables": {"t": {"select": "x", "optional_file": "f"}}}},
            "optional_file and otherwise belong together",
        ),
        ({"history": {"min_event": 2}}, "did you mean 'min_events'"),
    ],
)
def test_messages(change: dict[str, object], message: str) -> None:
    raw = {"name": "shop", "source": SOURCE, "requests": REQUESTS, **change}
    raw = {key: value for key, value in raw.items() if value is not None}
    with pytest.raises(UserError, match=rf"shop\.toml: .*{message}"):
        validate(DatasetDefinition, raw, "shop.toml")


@pytest.mark.parametrize(
    ("synthetic", "message"),
    [
        ({"items": 100}, "fewer than the 512 leaves"),
        ({"length_median": 50}, "length_min <= length_median"),
        ({"branches": [0, 4]}, "at least 1 child"),
        ({"head_candidates": 0.9}, "at most 1"),
        ({"tail_interests": 0}, "needs tail_weight = 0"),
    ],
)
def test_synthetic_messages(synthetic: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(DatasetDefinition, {"name": "s", "synthetic": synthetic}, "s.toml")


def test_synthetic_takes_no_source_tables() -> None:
    raw = {"name": "s", "synthetic": {}, "split": {"by": "user_fraction"}}
    with pytest.raises(UserError, match="makes its own split"):
        validate(DatasetDefinition, raw, "s.toml")
