"""MicroVideo and KuaiVideo in the form of LongCTR."""

from __future__ import annotations

from raw_files.files import RawFile, Row, schema


def longctr(*features: str) -> list[RawFile]:
    """Samples of three splits, clicks by user, videos; row k is user or video k.

    Args:
        features: integer columns of item_info besides item_index.
    """
    clicks = [[1 + (5 * user + 3 * k) % 40 for k in range(30)] for user in range(4)]

    def samples(first: int, last: int) -> list[Row]:
        return [
            (user, 1 + (5 * user + 3 * k + 7 * n) % 40, k, float(n == 0))
            for user in range(4)
            for k in range(first, last)
            for n in range(3)
        ]

    of_samples = schema("user_index:int64 item_index:int64 seq_len:int64 is_click:float32")
    of_items = schema(
        f"item_index:int64 {' '.join(f'{f}:int64' for f in features)} image_emb_dim64:[float]"
    )
    videos = [
        (item, *[item % (5 + n) for n in range(len(features))], [item / 64 + d for d in range(64)])
        for item in range(41)
    ]
    return [
        RawFile("train.parquet", samples(2, 20), schema=of_samples),
        RawFile("valid.parquet", samples(20, 24), schema=of_samples),
        RawFile("test.parquet", samples(24, 30), schema=of_samples),
        RawFile(
            "user_info.parquet",
            [(user, seq) for user, seq in enumerate(clicks)],
            schema=schema("user_index:int64 full_item_seq:[int64]"),
        ),
        RawFile(
            "item_info.parquet", videos, schema=of_items, unique=True, vector=len(features) + 1
        ),
    ]
