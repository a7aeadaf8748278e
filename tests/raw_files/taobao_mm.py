"""Taobao-MM."""

from __future__ import annotations

from raw_files.files import RawFile, Row, schema


def taobao_mm() -> list[RawFile]:
    samples = schema("label_0:[int8] 129_1:int64 205:int64")
    users = schema("""
        129_1:int64 130_1:int64 130_2:int64 130_3:int64 130_4:int64 130_5:int64
        150_2_180:[int64] 151_2_180:[int64]""")
    items = schema("205:int64 206:int64 213:int64 214:int64")
    vectors = schema("205:int64 205_c:[int8]")

    def item(n: int) -> int:
        return -5_343_151_251_631_757_820 + n

    def lists(member: int, shift: int) -> Row:
        seen = [(member + 3 * k + shift) % 40 for k in range(9)]
        return [item(n) for n in seen], [n // 8 for n in seen]

    def table(members: list[int], shift: int) -> list[Row]:
        return [(m, 7, -7, 1, 2, 0, *lists(m, shift)) for m in members]

    def shown(members: list[int], shift: int) -> list[Row]:
        return [
            ([0, 1] if (m + k) % 4 == 0 else [1, 0], m, item((m + k + shift) % 50))
            for m in members
            for k in range(3)
        ]

    train, test = [64, -96, *range(101, 109)], [64, *range(105, 112)]  # two are valid: % 32 = 0
    return [
        RawFile("train_samples.parquet", shown(train, 0), schema=samples),
        RawFile("test_samples.parquet", shown(test, 9), schema=samples),
        RawFile("train_user_features.parquet", table(train, 0), schema=users, unique=True),
        RawFile("test_user_features.parquet", table(test, 1), schema=users, unique=True),
        RawFile(
            "item_features.parquet",
            [(item(n), n // 8, n % 3, n % 5) for n in range(52)],
            schema=items,
            unique=True,
        ),
        RawFile(
            "scl_embedding_int8_p90.parquet",
            [(item(n), [n - 20, 127 - n, -128, 3]) for n in range(45)],
            schema=vectors,
            unique=True,
            vector=1,
        ),
    ]
