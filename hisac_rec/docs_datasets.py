"""The table of shipped data sets in ``docs/datasets.md``, from the definitions themselves.

``python -m hisac_rec.docs_datasets docs/datasets.md`` writes it anew.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from pathlib import Path

from hisac_rec.config import load_config
from hisac_rec.files import replace_text
from hisac_rec.preparation.definition import DatasetDefinition, SplitConfig
from hisac_rec.shipped import find_config, shipped_names

BEGIN, END = "<!-- table: make docs -->", "<!-- end of table -->"
_URL = re.compile(r"https?://[^\s,;)]+")
_DAY = 86_400


def table() -> str:
    """The table in Markdown, a row for each shipped definition."""
    rows = [
        "| definition | what | label | history | split | raw files from |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in sorted(shipped_names("datasets")):
        definition = load_config(DatasetDefinition, find_config("datasets", name))
        rows.append(f"| {' | '.join(_cells(name, definition))} |")
    return "\n".join(rows)


def _cells(name: str, definition: DatasetDefinition) -> Iterator[str]:
    yield f"[`{name}`](../datasets/{name}.toml)"
    yield definition.description
    if definition.source is None or definition.requests is None:
        yield from ("drawn from a known probability", "all events", "by time", "generated")
        return
    label = _code(definition.requests.label)
    tasks = ", ".join(definition.requests.tasks or {})
    drawn = definition.requests.negatives
    yield label + (f"; tasks {tasks}" if tasks else "") + ("; non-events drawn" if drawn else "")
    where, least = definition.history.where, definition.history.min_events
    who = " that vote for something" if definition.history.votes else ""
    least_text = f"; at least {least}{who}" if least else ""
    yield ("all events" if where == "true" else _code(where)) + least_text
    yield _split(definition.split, definition.clock)
    url = _URL.search(definition.source.where_to_get)
    yield f"[{url[0].split('/')[2]}]({url[0]})" if url else definition.source.where_to_get


def _split(split: SplitConfig, clock: bool) -> str:
    if split.by == "user_fraction":
        rest = 1 - split.train - split.valid
        return f"each user's, {split.train:.0%} / {split.valid:.0%} / {rest:.0%}"
    if split.by == "column":
        return "official"
    assert split.valid_from is not None
    assert split.test_from is not None
    if not clock or min(split.valid_from, split.test_from) < _DAY:
        return f"by time, {split.valid_from} and {split.test_from}"
    moments = (split.valid_from, split.test_from)
    shown = " and ".join(time.strftime("%Y-%m-%d %H:%M", time.gmtime(m)) for m in moments)
    return f"by time, {shown} UTC"


def _code(sql: str) -> str:
    return "`" + " ".join(sql.split()).replace("|", "\\|") + "`"


def filled(page: str) -> str:
    """A page with its table written anew.

    Raises:
        ValueError: the page has no place for it.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"expected a line {BEGIN} and a line {END}")
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


def main() -> None:
    """Write the table into the page given."""
    parser = argparse.ArgumentParser(description="Write the table of shipped data sets.")
    parser.add_argument("page", type=Path)
    page: Path = parser.parse_args().page
    replace_text(page, filled(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
