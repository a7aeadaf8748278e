"""KuaiRand-Pure, -1K and -27K as CSV, and the slice of Pure in Parquet."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from raw_files.files import RawFile, Row, names

LOG = names("""user_id video_id date hourmin time_ms is_click is_like is_follow is_comment
    is_forward is_hate long_view play_time_ms duration_ms profile_stay_time comment_stay_time
    is_profile_enter is_rand tab""")
VIDEO = names("""video_id author_id video_type upload_dt upload_type visible_status video_duration
    server_width server_height music_id music_type tag""")
PERSON = names("""user_id user_active_degree is_lowactive_period is_live_streamer
    is_video_author follow_user_num follow_user_num_range fans_user_num fans_user_num_range
    friend_user_num friend_user_num_range register_days register_days_range""")
PERSON += [f"onehot_feat{i}" for i in range(18)]
NONE, PLAYED = (0, 0, 0, 0, 0), (15104, 10440, 0, 0, 0, 0, 1)
CODES = (799, "730+", 1, 1, 29, 949, 1.0, 0, 0, 14, 135, 6, 3, 0, 0.0, 1.0, 0.0, 0.0, None, 0.0)
RANGES = ("500+", 150, "[100,1k)", 34, "[30,60)")
SHAPE = ("NORMAL", "2022-04-10", "LongImport", 0.0, 87433.0, 720.0, 1280.0, 9155697141)
APRIL_8, APRIL_22, MAY_5, MAY_6 = 1_649_347_200, 1_650_556_800, 1_651_680_000, 1_651_766_400


def _log(first: int, last: int) -> list[Row]:
    """Five users meet a video every few hours, from one moment to another."""
    return [
        (user, (user + k) % 30, *day, 1000 * (time + 60 * user) + 301, int(k % 3 == 0), *feedback)
        for user in range(5)
        for k, time in enumerate(range(first, last, 20_000))
        for day, feedback in [((20220422, 400), (*NONE, int(k % 6 == 0), *PLAYED))]
    ]


def _people() -> list[Row]:
    return [(user, "full_active", 0, 1, 1, 514, *RANGES, *CODES) for user in range(6)]


def _videos() -> list[Row]:
    return [
        (
            video,
            7000 + video // 4,
            *SHAPE,
            9.0 if video % 2 else None,
            "39" if video % 3 else "12,65",
        )
        for video in range(32)
    ]


def kuairand(suffix: str, parts: Sequence[str] = ("",)) -> list[RawFile]:
    logs = [
        RawFile(
            f"log_standard_{days}_{suffix}{part}.csv",
            _log(first, last)[k :: len(parts)],
            header=LOG,
            time=4,
            early=-1650485801301,
        )
        for days, first, last in (
            ("4_08_to_4_21", APRIL_8, APRIL_22),
            ("4_22_to_5_08", APRIL_22, MAY_6 + 2 * 86400),
        )
        for k, part in enumerate(parts)
    ]
    people, videos = f"user_features_{suffix}.csv", f"video_features_basic_{suffix}.csv"
    captions = [(video, f"#{video} 王者荣耀, 妲己", "", 114500.0) for video in range(30)]
    return [
        *logs,
        RawFile(people, _people(), header=PERSON, quoted=True, unique=True, text=1),
        RawFile(videos, _videos(), header=VIDEO, quoted=True, unique=True, text=4),
        RawFile(
            "kuairand_video_captions.csv",
            captions,
            header=("final_video_id", "caption", "show_cover_text", "duration"),
            quoted=True,
            required=False,
            unique=True,
            text=1,
        ),
    ]


def kuairand_pure() -> list[RawFile]:
    log = pa.schema([(name, pa.int64()) for name in LOG])
    kinds = {"video_type": pa.string(), "upload_dt": pa.string(), "upload_type": pa.string()}
    kinds |= {"visible_status": pa.float64(), "video_duration": pa.float64(), "tag": pa.string()}
    kinds |= dict.fromkeys(("server_width", "server_height", "music_type"), pa.float64())
    video = pa.schema([(name, kinds.get(name, pa.int64())) for name in VIDEO])
    words = {name for name, value in zip(PERSON, _people()[0], strict=True) if type(value) is str}
    floats = {f"onehot_feat{i}" for i in (4, 12, 13, 14, 15, 16, 17)}
    person = pa.schema(
        [
            (n, pa.string() if n in words else pa.float64() if n in floats else pa.int64())
            for n in PERSON
        ]
    )
    lists = pa.list_(pa.int64())
    before = pa.schema(
        [("user_id", pa.int64()), ("history_len", pa.int64()), ("last_time_ms", pa.int64())]
        + [(f"{kind}_seq", lists) for kind in ("watch", "like", "long_watch")]
    )
    sequences = [(u, 3, 1000 * APRIL_22, [u, 7, 8], [7], []) for u in range(6)]
    early = -1650485801301
    return [
        RawFile("val.parquet", _log(APRIL_22, MAY_5), schema=log, time=4, early=early),
        RawFile("test.parquet", _log(MAY_5, MAY_6 + 2 * 86400), schema=log, time=4, early=early),
        RawFile("user_sequences.parquet", sequences, schema=before, time=2, early=early),
        RawFile("user_features.parquet", _people(), schema=person, unique=True, text=1),
        RawFile("item_features.parquet", _videos(), schema=video, unique=True, text=4),
    ]
