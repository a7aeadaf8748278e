"""Every shipped definition, broken in every way that applies: the message names file and row.

A definition is added by an entry in ``tests/raw_files.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from raw_files import SMALL, RawFile

from hisac_rec.config import load_config
from hisac_rec.errors import UserError
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare
from hisac_rec.shipped import find_config, shipped_names

ROW = 2
"""The row that is broken, counted from 0."""


def other_delimiter(file: RawFile) -> RawFile:
    return replace(file, delimiter=";")


def bad_encoding(file: RawFile) -> RawFile:
    assert file.text is not None
    return file.changed(ROW, file.text, b"caf\xe9 \xff")


def same_id_twice(file: RawFile) -> RawFile:
    return replace(file, rows=[*file.rows, file.rows[ROW]])


def negative_time(file: RawFile) -> RawFile:
    assert file.time is not None
    return file.changed(ROW, file.time, file.early)


def narrow_vector(file: RawFile) -> RawFile:
    assert file.vector is not None
    if file.schema is None:  # the rest of the line
        return replace(file, rows=[*file.rows[:ROW], file.rows[ROW][:-1], *file.rows[ROW + 1 :]])
    return file.changed(ROW, file.vector, file.rows[ROW][file.vector][:-1])


BREAKS: dict[str, Callable[[RawFile], RawFile]] = {
    break_.__name__: break_
    for break_ in (other_delimiter, bad_encoding, same_id_twice, negative_time, narrow_vector)
}


def cases() -> Iterator[tuple[str, str, str, str, str]]:
    """(definition, file, how it is broken, where the message says so, what it says)."""
    for name, files in SMALL.items():
        for file in files():
            if file.required:
                yield name, file.name, "missing", file.name, "raw file is missing; .* needs"
            if file.schema is None and not file.detected and len(file.rows[1]) > 1:
                first = f"{file.name}, line [12]"
                yield name, file.name, "other_delimiter", first, "[Ee]xpected|not convert|numbers"
            if file.text is not None:
                yield name, file.name, "bad_encoding", file.place(ROW), "UTF-8|utf-8|unicode"
            if file.unique:
                last = file.place(len(file.rows))
                yield name, file.name, "same_id_twice", last, "has several rows, expected one"
            if file.time is not None:
                yield name, file.name, "negative_time", file.place(ROW), "a negative time"
            if file.vector is not None:
                yield name, file.name, "narrow_vector", file.place(ROW), "same width|expected 100"


LIKE = {"kuairand_1k": "kuairand_27k", "kuairand_pure_csv": "kuairand_27k"}
"""Definitions that differ in file names alone."""


def marked() -> Iterator[object]:
    """Each way once a definition; the same way in its other files is left to the slow run."""
    met: set[tuple[str, str]] = set()
    for case in cases():
        name, file, how, *_ = case
        kind = LIKE.get(name, name), how
        again = kind in met
        met.add(kind)
        marks = [pytest.mark.slow] if again else []
        yield pytest.param(*case, marks=marks, id=f"{name}-{how}-{Path(file).name}")


@pytest.mark.parametrize(("name", "broken", "how", "place", "says"), list(marked()))
def test_names_file_and_row(
    tmp_path: Path, name: str, broken: str, how: str, place: str, says: str
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for file in SMALL[name]():
        if file.name != broken:
            file.write(raw)
        elif how != "missing":
            BREAKS[how](file).write(raw)
    path = find_config("datasets", name)
    definition = load_config(DatasetDefinition, path)
    with pytest.raises(UserError) as raised:
        prepare(definition, tmp_path / "out", raw=raw, origin=str(path))
    message = str(raised.value)
    assert definition.source is not None
    if how == "missing":
        pattern = next(p for p in definition.source.files if Path(broken).match(p))
        assert f"{raw / pattern}: raw file is missing" in message
        assert definition.source.where_to_get in message
    else:
        assert re.search(rf"{re.escape(str(raw))}/{place}\b", message), message
        assert re.search(says, message), message
        assert path.name in message
    assert [entry.name for entry in tmp_path.iterdir()] == ["raw"], "something half-written is left"


def test_every_shipped_definition_is_here() -> None:
    with_source = {
        name
        for name in shipped_names("datasets")
        if load_config(DatasetDefinition, find_config("datasets", name)).source is not None
    }
    assert set(SMALL) == with_source
