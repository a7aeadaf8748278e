"""Event tables in the Medical Event Data Standard."""

from __future__ import annotations

from datetime import datetime, timedelta

from raw_files.files import RawFile, Row, schema


def care_events() -> list[RawFile]:
    rows: list[Row] = []
    for subject in range(6):
        born = datetime(1950 + subject, 3, 1)
        rows.append((subject, None, f"GENDER//{'FM'[subject % 2]}", None))
        rows.append((subject, born, "MEDS_BIRTH", None))
        for visit in range(16):
            at = datetime(2030 + subject, 1, 1) + timedelta(days=20 * visit, hours=subject)
            for k in range(3):
                code = (3 * subject + 5 * visit + 7 * k) % 20
                value = None if k else (0.0, 37.5, -2.0)[visit % 3]
                rows.append((subject, at, f"ICD10CM//E{code}" if k else f"LAB//{code}", value))
    of_data = schema("subject_id:int64 time:timestamp code:string numeric_value:float")
    codes = sorted({row[2] for row in rows})
    return [
        RawFile("data/train/0.parquet", rows[:150], schema=of_data, required=False),
        RawFile("data/held_out/0.parquet", rows[150:], schema=of_data, required=False),
        RawFile(
            "metadata/codes.parquet",
            [
                (c, f"about {c}" if i % 2 else None, ["SNOMED/1"] if i % 3 else None)
                for i, c in enumerate(codes)
            ],
            schema=schema("code:string description:string parent_codes:[string]"),
            unique=True,
            text=1,
        ),
    ]
