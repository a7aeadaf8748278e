"""What a warm start kept, as a table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TableReport:
    """One table of the model.

    Args:
        name: of the table.
        before: rows it had there.
        now: rows it has here.
        kept: rows that were taken over.
        by: how they were matched, or why not.
    """

    name: str
    before: int
    now: int
    kept: int
    by: str


@dataclass(frozen=True)
class DenseReport:
    """One dense parameter.

    Args:
        name: of the parameter.
        shape: here.
        outcome: "kept", or why not.
    """

    name: str
    shape: tuple[int, ...]
    outcome: str


@dataclass(frozen=True)
class WarmReport:
    """A whole warm start.

    Args:
        source: the checkpoint.
        tables: every trained table of the model.
        dense: every dense parameter of the model.
        gone: tables of that run that this model does not have.
    """

    source: str
    tables: list[TableReport]
    dense: list[DenseReport]
    gone: list[str]

    def markdown(self) -> str:
        """For people: the tables, and of dense parameters those that were not kept."""
        lines = [
            f"# Started from {self.source}",
            "",
            "| table | rows there | rows here | kept | new | dropped | matched by |",
            "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        lines += [
            f"| {t.name} | {t.before:,} | {t.now:,} | {t.kept:,} | {t.now - t.kept:,} "
            f"| {max(0, t.before - t.kept):,} | {t.by} |"
            for t in self.tables
        ]
        lines += [f"| {name} | | | | | all | this model has no such table |" for name in self.gone]
        other = [one for one in self.dense if one.outcome != "kept"]
        kept = len(self.dense) - len(other)
        lines += ["", f"Dense parameters: {kept} of {len(self.dense)} kept."]
        if other:
            lines += ["", "| dense parameter | shape | |", "| --- | --- | --- |"]
            lines += [f"| {one.name} | {one.shape} | {one.outcome} |" for one in other]
        return "\n".join(lines) + "\n"
