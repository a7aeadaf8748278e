"""Statics 2011: three lines a student."""

from __future__ import annotations

from raw_files.files import RawFile, Row


def statics2011() -> list[RawFile]:
    """Three lines a student, each list ends with a comma."""
    rows: list[Row] = []
    for student in range(6):
        answers = [(student + k) % 20 for k in range(24)]
        rows += [(24,), tuple(answers), tuple(int(a % 3 > 0) for a in answers)]
    return [
        RawFile("STATICS_train.csv", rows[:12], text=0),
        RawFile("STATICS_test.csv", rows[12:], text=0),
    ]
