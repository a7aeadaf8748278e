"""What is searched, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FixedTrial

from hisac_rec.config import load_config, validate
from hisac_rec.errors import UserError
from hisac_rec.methods.base import find_method, method_names
from hisac_rec.shipped import find_config, shipped_names
from hisac_rec.tuning.space import Search, SearchSpace, open_search


def search_of(model: Path, keys: dict[str, Any], *overrides: str) -> Search:
    return open_search(model, validate(SearchSpace, {"keys": keys}, "s.toml"), overrides, "s.toml")


def test_the_shipped_space_is_found_and_is_no_model() -> None:
    path = find_config("models/search", "common")
    assert "train.sparse_lr" in load_config(SearchSpace, path).keys
    assert "common" not in shipped_names("models")
    assert not any("search" in name for name in shipped_names("models"))


@pytest.mark.parametrize("name", shipped_names("models"))
def test_every_shipped_model_can_be_searched(name: str) -> None:
    """The common space and what its method names fit its file."""
    common = load_config(SearchSpace, find_config("models/search", "common"))
    search = open_search(find_config("models", name), common, [], "common.toml")
    own = find_method(search.base.method).search
    assert list(search.dimensions) == [*common.keys, *(f"history.{key}" for key in own)]
    for key, value in search.defaults().items():
        dimension = search.dimensions[key]
        parameter = dimension.encode(value)
        trial = FixedTrial({key: parameter})
        assert trial._suggest(key, dimension.distribution()) == parameter  # warns outside
        assert dimension.distribution()._contains(
            dimension.distribution().to_internal_repr(parameter)
        )
        assert dimension.decode(parameter) == value
    assert search.config(search.defaults()) == search.base


def test_methods_name_keys_to_tune() -> None:
    assert set(find_method("hisac").search) >= {"keep", "tau"}
    assert set(find_method("recent").search) >= {"events"}
    assert find_method("none").search == {}
    assert all(values for name in method_names() for values in find_method(name).search.values())


def test_a_dimension_is_widened_to_the_files_own_value(models: dict[str, Path]) -> None:
    search = search_of(
        models["small_recent"],
        {
            "train.sparse_lr": {"low": 0.01, "high": 0.2, "log": True},
            "train.dense_lr": {"low": 0.01, "high": 0.1},
            "ranker.recent": {"low": 30, "high": 40},
            "tables.init_scale": {"values": [1, 0.1]},
            "ranker.over_layers": {"values": [[8], [4, 4]]},
        },
    )
    got = {key: (one.low, one.high, one.values) for key, one in search.dimensions.items()}
    assert got == {
        "train.sparse_lr": (0.01, 0.3, None),
        "train.dense_lr": (0.003, 0.1, None),
        "ranker.recent": (20, 40, None),
        "tables.init_scale": (None, None, [1.0, 0.1]),
        "ranker.over_layers": (None, None, [[16], [8], [4, 4]]),
        "history.events": (None, None, [7, 10, 20, 50]),
        "history.heads": (None, None, [1, 2, 4]),
    }
    assert type(search.dimensions["ranker.recent"].low) is int


def test_a_key_that_is_set_is_not_searched(models: dict[str, Path]) -> None:
    keys = {"train.dense_lr": {"low": 0.001, "high": 0.1}}
    search = search_of(models["small_recent"], keys, "history.events=9", "train.dense_lr=0.5")
    assert list(search.dimensions) == ["history.heads"]
    assert search.base.history["events"] == 9


def test_the_file_has_the_last_word_on_a_methods_key(models: dict[str, Path]) -> None:
    search = search_of(models["small_recent"], {"history.events": {"low": 2, "high": 9}})
    assert (search.dimensions["history.events"].low, search.dimensions["history.events"].high) == (
        2,
        9,
    )


RANGE = {"low": 0.1, "high": 0.2}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"train.sparse_lrr": RANGE},
            r"s.toml, for .*small_recent.toml: unknown key 'train.sparse_lrr'; did you mean "
            r"'sparse_lr'",
        ),
        ({"trian.sparse_lr": RANGE}, r"unknown key 'trian'; did you mean 'train'"),
        ({"name.x": RANGE}, r"key 'name.x': 'name' holds a value"),
        ({"history.tau": RANGE}, r"\[history\]: unknown key 'tau'"),
        ({"ranker.dropout": {"low": 0, "high": 1}}, r"key 'ranker.dropout' = 1: .*less than 1"),
        ({"train.metric": {"values": ["auc", "ndcg"]}}, r"key 'train.metric' = 'ndcg'"),
        ({"ranker.dropout": RANGE | {"log": True}}, r"is 0.0, which no logarithmic range holds"),
        ({"inputs.max_history": {"low": 5, "high": 9}}, r"'inputs.max_history' is None, not a num"),
        ({"train.dense_lr": RANGE | {"values": [1]}}, r"low and high, or values, not both"),
        ({"train.dense_lr": {"low": 0.1}}, r"give low and high, or values"),
        ({"train.dense_lr": {"low": 0.2, "high": 0.1}}, r"low must be less than high"),
        ({"train.dense_lr": {"low": 0, "high": 1, "log": True}}, r"starts above 0"),
        ({"train.dense_lr": {"values": []}}, r"values is empty"),
        ({"train.dense_lr": {"lo": 1}}, r"unknown key 'keys.train.dense_lr.lo'; did you mean"),
    ],
    ids=str,
)
def test_refusals(models: dict[str, Path], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        search_of(models["small_recent"], keys)
