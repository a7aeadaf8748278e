"""What a cache keeps, finds again and refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hisac_rec.errors import UserError
from hisac_rec.serving.cache import (
    MANIFEST,
    NEWEST,
    Cache,
    CacheManifest,
    CacheWriter,
    Keys,
    pack,
)
from hisac_rec.serving.precision import Precision, decode, encode

DIM = 6


def manifest(
    precision: Precision = "fp32", rejected: dict[str, str] | None = None
) -> CacheManifest:
    return CacheManifest(
        run="r",
        method="hisac",
        data_fingerprint="d",
        semantics_fingerprint="s",
        dim=DIM,
        fields={"events": "float", "path": "int32"},
        rejected=rejected or {},
        precision=precision,
        at="last",
        age=0,
        newest=2,
        user_features=["city"],
    )


def keys(user: list[int], time: list[int]) -> Keys:
    rows = np.arange(len(user))
    return Keys(np.array(user), np.array(time), rows, rows + 1, pa.array([f"u{u}" for u in user]))


def random_held(rows: int, slots: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    filled = torch.rand(rows, slots, generator=generator) < 0.6
    filled[0] = False  # somebody without a history
    return {
        "filled": filled,
        "vectors": torch.randn(rows, slots, DIM, generator=generator) * filled.unsqueeze(-1),
        "events": torch.randint(1, 50, filled.shape, generator=generator).float() * filled,
        "path": torch.where(filled, torch.randint(0, 99, filled.shape, generator=generator), -1),
    }


def write(
    root: Path,
    held: dict[str, torch.Tensor],
    of: Keys,
    precision: Precision,
    rejected: dict[str, str] | None = None,
) -> Cache:
    root.mkdir(exist_ok=True)
    what = manifest(precision, rejected)
    (root / MANIFEST).write_text(what.model_dump_json())
    writer = CacheWriter(root, what, rank=0)
    lists = {
        name: pa.array([[1, 2]] * len(of.user), pa.list_(kind)) for name, kind in NEWEST.items()
    }
    plain = lists | {"user_city": pa.array([3] * len(of.user), pa.int32())}
    writer.write(pack(of, held, what, plain))
    writer.flush()
    return Cache(root)


@pytest.mark.parametrize(("precision", "close"), [("fp32", 0), ("fp16", 1e-3), ("int8", 1 / 254)])
def test_agents_come_back(tmp_path: Path, precision: Precision, close: float) -> None:
    held = random_held(7, 5)
    cache = write(tmp_path / "c", held, keys([*range(7)], [0] * 7), precision)
    rows = np.array([6, -1, 0, 3])
    found = cache.memory(rows)
    for place, row in enumerate(rows):
        there = found["filled"][place]
        wanted = held["filled"][row] if row >= 0 else torch.zeros(5, dtype=torch.bool)
        assert int(there.sum()) == int(wanted.sum())
        for name in ("events", "path"):
            assert torch.equal(found[name][place][there], held[name][row][wanted])
        assert (found["path"][place][~there] == -1).all()
        assert (found["events"][place][~there] == 0).all()
        vectors, expected = found["vectors"][place][there], held["vectors"][row][wanted]
        largest = expected.abs().amax(1, keepdim=True)
        assert ((vectors - expected).abs() <= close * largest + 1e-12).all()
    assert cache.agents().tolist() == held["filled"].sum(1).tolist()


def test_rejected_leaves_come_back_in_lists_of_their_own(tmp_path: Path) -> None:
    held = random_held(4, 5)
    path = torch.tensor([[7, -1, -1], [1, 2, 3], [-1, -1, -1], [5, 9, -1]])
    held |= {"against_path": path, "against": torch.rand(path.shape) * (path >= 0)}
    kinds = {"against_path": "int32", "against": "float"}
    cache = write(tmp_path / "c", held, keys([*range(4)], [0] * 4), "fp32", kinds)
    rows = np.array([3, -1, 0, 2])
    found = cache.memory(rows)
    wanted = torch.where(torch.from_numpy(rows >= 0)[:, None], path[rows][:, :2], -1)
    assert torch.equal(found["against_path"], wanted)
    against = held["against"][rows][:, :2] * torch.from_numpy(rows >= 0)[:, None]
    assert torch.equal(found["against"], against)
    assert found["filled"].sum(1).tolist() == [int(n) for n in _agents(held, rows)]


def _agents(held: dict[str, torch.Tensor], rows: np.ndarray) -> list[int]:
    return [int(held["filled"][row].sum()) if row >= 0 else 0 for row in rows]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1_000), scale=st.floats(1e-6, 1e6))
def test_eight_bits_are_off_by_half_a_step_at_most(seed: int, scale: float) -> None:
    vectors = (np.random.default_rng(seed).normal(size=(9, DIM)) * scale).astype(np.float32)
    vectors[4] = 0
    back = decode(*encode(vectors, "int8"))
    step = np.abs(vectors).max(1, keepdims=True) / 127
    assert (np.abs(back - vectors) <= step * 0.5001).all()
    assert not back[4].any()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 30))
def test_the_newest_history_not_later_than_the_request_is_read(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    user, time = rng.integers(0, 5, rows), rng.integers(0, 9, rows)
    cache = Cache.__new__(Cache)
    cache.keys = Keys(user, time, np.arange(rows), np.arange(rows))
    asking, when = rng.integers(0, 6, 20), rng.integers(-1, 10, 20)
    for found, who, at in zip(cache.newest(asking, when), asking, when, strict=True):
        fits = [row for row in range(rows) if user[row] == who and time[row] <= at]
        expected = max(fits, key=lambda row: (time[row], row)) if fits else -1
        assert found == expected


def test_later_parts_win(tmp_path: Path) -> None:
    first = write(tmp_path, random_held(2, 3, seed=1), keys([1, 2], [5, 5]), "fp32")
    again = write(tmp_path, random_held(2, 3, seed=2), keys([2, 3], [5, 5]), "fp32")
    assert (len(first), len(again)) == (2, 4)
    assert again.newest(np.array([1, 2, 3]), np.array([5, 5, 5])).tolist() == [0, 2, 3]
    assert sorted(path.name for path in tmp_path.glob("part-*")) == [
        "part-000000-00000.arrow",
        "part-000001-00000.arrow",
    ]


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    write(tmp_path, random_held(4, 3), keys([1, 2, 3, 4], [0] * 4), "fp32")
    (part,) = tmp_path.glob("part-*")
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(UserError, match=rf"{part.name}: a damaged part of the cache"):
        Cache(tmp_path)


def test_another_folder_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a cache \(manifest.json is missing\); make one with"):
        Cache(tmp_path)
