"""Event logs of other industries become data sets by a definition alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from hisac_rec.config import validate
from hisac_rec.data.contract import PreparedData
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare

VIDEO = {  # impressions with a clock, earlier histories in another file as lists
    "name": "short-video",
    "source": {
        "files": ["val.parquet", "test.parquet", "user_sequences.parquet"],
        "events": """
            SELECT user_id AS user, video_id AS item, time_ms // 1000 AS time,
                CASE WHEN long_view = 1 THEN 'long' WHEN is_click = 1 THEN 'click' ELSE 'shown' END
                    AS type, 0 AS sequence, is_click
            FROM read_parquet(['{raw}/val.parquet', '{raw}/test.parquet'], union_by_name = true)
            UNION ALL
            SELECT user_id, unnest(watch_seq), last_time_ms // 1000 - 1, 'before',
                generate_subscripts(watch_seq, 1), 0
            FROM '{raw}/user_sequences.parquet'""",
        "users": """SELECT user_id AS user, user_active_degree
            FROM '{raw}/user_features.parquet'""",
    },
    "history": {"where": "is_click = 1 OR type = 'before'"},
    "requests": {"where": "type <> 'before'", "label": "is_click", "group": "time // 1800"},
    "split": {"by": "time", "valid_from": 1651200000, "test_from": 1651600000},
}


def made(definition: dict[str, Any], raw: Path, out: Path) -> PreparedData:
    return prepare(validate(DatasetDefinition, definition, "test.toml"), out, raw=raw)


def test_short_video(shared_data: Path, tmp_path: Path) -> None:
    data = made(VIDEO, shared_data / "kuairand-pure-slice", tmp_path / "out")
    counts = data.manifest.splits.values()
    assert sum(split.candidates for split in counts) == 228_329  # every impression, once
    assert data.manifest.event_types == ["before", "click", "long"]
    assert [f.name for f in data.manifest.user_features] == ["user_active_degree"]
    assert data.stats.candidates_max > 5
    row = pq.read_table(data.root / "train").slice(0, 1).to_pylist()[0]
    assert row["history_type"][0] == 0
    assert row["requests"][0]["history_end"] >= row["history_type"].count(0)
