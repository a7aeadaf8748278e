"""Reading, overriding and validating configuration; what the errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from hisac_rec.config import (
    Strict,
    apply_overrides,
    dump_toml,
    load_config,
    parse_override,
    read_toml,
    validate,
)
from hisac_rec.errors import UserError


class Layer(Strict):
    width: int = Field(default=8, gt=0)
    """Neurons."""


class Training(Strict):
    epochs: int = Field(default=3, gt=0)
    """Passes."""
    metric: Literal["auc", "gauc"] = "auc"
    """What is compared."""
    limit: int | None = None
    """At most."""


class Whole(Strict):
    name: str
    """Name."""
    train: Training = Training()
    """Training."""
    layers: list[Layer] = []
    """Layers."""
    tables: dict[str, Layer] = {}
    """By name."""
    optional: Layer | None = None
    """May be absent."""


def write(folder: Path, text: str) -> Path:
    path = folder / "model.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(Whole, write(folder, text), overrides)
    return str(caught.value)


def test_defaults_fill_what_the_file_leaves_out(tmp_path: Path) -> None:
    config = load_config(Whole, write(tmp_path, "name = 'a'\n[train]\nepochs = 5"))
    assert config == Whole(name="a", train=Training(epochs=5))


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("name = 'a'\ntrian = 1", "trian", "train"),
        ("name = 'a'\n[train]\nepoch = 1", "train.epoch", "epochs"),
        ("name = 'a'\n[[layers]]\nwidht = 1", "layers.0.widht", "width"),
        ("name = 'a'\n[tables.item]\nwith = 1", "tables.item.with", "width"),
        ("name = 'a'\n[optional]\nwidth_ = 1", "optional.width_", "width"),
    ],
)
def test_an_unknown_key_names_the_nearest_at_any_depth(
    tmp_path: Path, text: str, key: str, near: str
) -> None:
    message = complaint(tmp_path, text)
    assert message == f"{tmp_path / 'model.toml'}: unknown key '{key}'; did you mean '{near}'?"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name = 'a'\n[train]\nepochs = 'many'", ("train.epochs", "'many'", "integer")),
        ("name = 'a'\n[train]\nepochs = 0", ("train.epochs", "0", "greater than 0")),
        ("name = 'a'\n[train]\nmetric = 'acc'", ("train.metric", "'acc'", "'auc' or 'gauc'")),
        ("[train]\nepochs = 1", ("key 'name' is required",)),
    ],
)
def test_an_error_names_file_key_value_and_what_is_allowed(
    tmp_path: Path, text: str, told: tuple[str, ...]
) -> None:
    message = complaint(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'model.toml'}: ")
    assert all(part in message for part in told)


def test_every_mistake_gets_its_own_line(tmp_path: Path) -> None:
    message = complaint(tmp_path, "name = 1\nnam = 'a'\n[train]\nepochs = -1")
    assert len(message.splitlines()) == 3


def test_an_override_is_checked_like_the_file(tmp_path: Path) -> None:
    assert "unknown key 'train.epoch'" in complaint(tmp_path, "name = 'a'", "train.epoch=1")
    assert "greater than 0" in complaint(tmp_path, "name = 'a'", "train.epochs=0")


def test_overrides_apply_in_order_and_reach_absent_tables(tmp_path: Path) -> None:
    path = write(tmp_path, "name = 'a'")
    given = ["train.epochs=1", "train.epochs=2", "optional.width=4", "train.metric=gauc"]
    config = load_config(Whole, path, given)
    assert config.train.epochs == 2
    assert config.train.metric == "gauc"
    assert config.optional == Layer(width=4)


def test_overrides_leave_the_input_alone() -> None:
    raw: dict[str, Any] = {"train": {"epochs": 1}, "layers": [{"width": 1}]}
    apply_overrides(raw, ["train.epochs=2"])
    assert raw == {"train": {"epochs": 1}, "layers": [{"width": 1}]}


@pytest.mark.parametrize("text", ["train.epochs", "=3", "train.=3", ".epochs=3", ""])
def test_a_malformed_override_shows_how_it_is_written(text: str) -> None:
    with pytest.raises(UserError, match=r"expected key\.path=value"):
        parse_override(text)


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(UserError, match="'epochs' holds a value"):
        apply_overrides({"train": {"epochs": 1}}, ["train.epochs.more=1"])


values = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.lists(st.integers(-9, 9)),
    st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=20),
)


@given(values)
def test_an_override_carries_any_toml_value(value: Any) -> None:
    written = tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")
    assert parse_override(f"a.b={written}") == (["a", "b"], value)


def test_a_bare_word_is_a_string() -> None:
    assert parse_override("history.method=din") == (["history", "method"], "din")
    assert parse_override("inputs=a=b") == (["inputs"], "a=b")


def test_a_config_survives_being_written_and_read(tmp_path: Path) -> None:
    config = Whole(
        name='quotes " and\nlines', train=Training(limit=4), layers=[Layer(), Layer(width=3)]
    )
    assert load_config(Whole, write(tmp_path, dump_toml(config))) == config


def test_configuration_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Training().epochs = 4  # type: ignore[misc]


def test_infinity_is_no_configuration() -> None:
    class Rate(Strict):
        lr: float = 0.1
        """Learning rate."""

    with pytest.raises(UserError, match=r"train: key 'lr' = inf.*finite"):
        validate(Rate, {"lr": float("inf")}, source="train")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("a = = 1"), "line 1"),
        (lambda path: path.write_bytes(b"a = '\xff'"), "not valid TOML"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, make: Any, told: str) -> None:
    path = tmp_path / "x.toml"
    make(path)
    with pytest.raises(UserError, match=told) as caught:
        read_toml(path)
    assert str(path) in str(caught.value)
