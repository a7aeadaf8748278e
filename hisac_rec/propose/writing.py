"""The definition as a file for people: keys, SQL over several lines, why each was chosen."""

from __future__ import annotations

import textwrap
import tomllib
from typing import Any

from hisac_rec.config import validate
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.propose.labels import label_choice
from hisac_rec.propose.moments import written
from hisac_rec.propose.proposal import Proposal

WIDTH = 96
INNER = {
    "tasks": "further labels: a model learns those that its tasks.train names",
    "negatives": "the log holds successes alone",
}
"""Tables inside ``[requests]``, and what they are for."""


def as_toml(proposal: Proposal, warnings: list[str], command: str) -> str:
    """The text of the file.

    Args:
        proposal: what was chosen.
        warnings: what the data warned of, one line each.
        command: how the data set is prepared from it.
    """
    made = proposal.definition()
    lines = [_head(proposal, warnings, command)]
    lines += [_pair(key, made[key]) for key in ("name", "description")]
    if not made["clock"]:
        lines.append("clock = false # order alone")
    lines += ["", "[source]"]
    lines += [_pair(key, value) for key, value in made["source"].items()]
    for table in ("features", "history", "requests", "split", "semantic_ids"):
        if not made.get(table):
            continue
        lines += ["", f"[{table}]"]
        for key, value in made[table].items():
            if key in INNER:
                lines += ["", f"[requests.{key}] # {INNER[key]}"]
                lines += [_pair(name, one) for name, one in value.items()]
                continue
            after = (
                f" # {written(value)} UTC"
                if key in ("valid_from", "test_from") and made["clock"]
                else ""
            )
            lines.append(_pair(key, value) + after)
    return "\n".join(lines) + "\n"


def read_back(text: str, origin: str) -> DatasetDefinition:
    """The definition that the text says, validated as ``prepare`` does."""
    return validate(DatasetDefinition, tomllib.loads(text), origin)


def _pair(key: str, value: Any) -> str:
    if isinstance(value, str):
        if "\n" in value:
            escaped = value.replace("\\", "\\\\").replace('"""', '""\\"')
            ending = "\\" if escaped.endswith('"') else ""
            body = escaped[:-1] + ending + escaped[-1] if ending else escaped
            return f'{key} = """\n{_control(body)}"""'
        return f"{key} = {_string(value)}"
    if isinstance(value, bool):
        return f"{key} = {'true' if value else 'false'}"
    if isinstance(value, list):
        return f"{key} = [{', '.join(_string(v) if isinstance(v, str) else str(v) for v in value)}]"
    if isinstance(value, dict):
        inner = ", ".join(_pair(name, one) for name, one in value.items())
        return f"{key} = {{ {inner} }}"
    return f"{key} = {value}"


def _string(value: str) -> str:
    return '"' + _control(value.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _control(value: str) -> str:
    return "".join(
        f"\\u{ord(c):04X}" if (ord(c) < 32 and c != "\n") or ord(c) == 127 else c for c in value
    )


def _head(proposal: Proposal, warnings: list[str], command: str) -> str:
    log = proposal.log
    chosen = [log.user, log.item, log.time, label_choice(log.label)]
    parts = [
        f"{proposal.log.raw.title}, as `hisac-rec init-dataset` understood it. Read it, change it.",
        "",
        f"  {command}",
        "",
        "Guessed, and why:",
    ]
    for choice in chosen:
        if choice.role == "label" and log.label.kind == "none":
            what = "none"
        else:
            what = ", ".join(choice.columns) or choice.sql
        parts.append(f"- {choice.role}: {what}: {choice.reason}")
    parts.append(f"- request: {proposal.group_name}: {proposal.group_reason}")
    parts.append(f"- split: {proposal.split.reason}")
    for side in (proposal.items, proposal.users):
        if side is None or not (side.features or side.text or side.content or side.dropped):
            continue
        for feature in side.features:
            parts.append(
                f"- {side.side} feature {feature.name}: {feature.reason.replace(' ([])', '')}"
            )
        if side.text_columns:
            parts.append(f"- {side.side} text: {', '.join(side.text_columns)}")
        if side.content is not None:
            parts.append(f"- {side.side} content: {side.content_reason}")
        for name, why in side.dropped:
            parts.append(f"- {side.side} column {name} left out: {why}")
    if proposal.unused:
        parts.append(f"- columns of the events without a use: {', '.join(proposal.unused)}")
    if proposal.notes or warnings:
        parts += ["", "Warnings:"]
        parts += [f"- {line}" for line in (*proposal.notes, *warnings)]
    return "\n".join(_comment(part) for part in parts)


def _comment(part: str) -> str:
    if not part:
        return "#"
    if part.startswith("  "):
        return f"# {part}"
    clean = "".join(c if c.isprintable() else "?" for c in part)
    indent = "  " if clean.startswith("- ") else ""
    wrapped = textwrap.wrap(clean, WIDTH - 2, subsequent_indent=indent, break_long_words=False)
    return "\n".join(f"# {line}" for line in wrapped)
