"""The loader against a plain reading of the Parquet: every request once, nothing changed."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import random_rows, write_prepared
from numpy.typing import NDArray
from torch import Tensor

from hisac_rec.data.assemble import BatchAssembler
from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.consumed import Consumed
from hisac_rec.data.contract import Feature, PreparedData
from hisac_rec.data.inputs import InputConfig, InputSpec, build_input_spec
from hisac_rec.data.items import ItemStore, load_items
from hisac_rec.data.loader import LoaderConfig, RequestBatches, Shard, make_loader
from hisac_rec.errors import UserError

ITEMS = 50
USERS = 41
CODES = (4, 6)
USER_FEATURES = [Feature(name="age", rows=7)]
ITEM_FEATURES = [Feature(name="category", rows=9), Feature(name="tags", rows=11, multi=True)]
CONFIG = LoaderConfig(batch_tokens=300, candidate_cost=4, max_candidates=40, shuffle_requests=20)


@dataclass(frozen=True)
class World:
    data: PreparedData
    spec: InputSpec
    items: ItemStore
    codes: NDArray[np.int32]

    def batches(self, split: str = "train", **options: Any) -> RequestBatches:
        config = options.pop("config", CONFIG)
        spec = options.pop("spec", self.spec)
        return RequestBatches(self.data, split, spec, self.items, config, **options)  # type: ignore[arg-type]


def make_world(root: Path, inputs: InputConfig, rows: dict[str, Any] | None = None) -> World:
    data = write_prepared(
        root,
        items=ITEMS,
        rows=rows,
        users=USERS,
        user_features=USER_FEATURES,
        item_features=ITEM_FEATURES,
        files_per_split=3,
    )
    rng = np.random.default_rng(5)
    codes = np.stack([rng.integers(0, c, ITEMS) for c in CODES], 1).astype(np.int32)
    spec = build_input_spec(inputs, data.manifest, CODES)
    return World(data, spec, load_items(data, spec, codes, placed(ITEMS)), codes)


def placed(items: int) -> NDArray[np.bool_]:
    """Every third item is one of whom nothing is known."""
    return np.arange(items) % 3 > 0


def code(world: World, item: int, level: int) -> int:
    """The row of a table of codes that an item reads: the last one where it has no place."""
    return int(world.codes[item, level]) if placed(ITEMS)[item] else CODES[level]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    rng = np.random.default_rng(3)
    rows = random_rows(rng, USERS, ITEMS, max_history=30, user_features=USER_FEATURES)
    rows[4] |= {"history_item": [], "history_type": [], "history_time": []}
    for request in rows[4]["requests"]:
        request["history_end"] = 0
    rows[7]["requests"] = []
    inputs = InputConfig(history=["id", "sid", "*"])
    return make_world(tmp_path_factory.mktemp("loader"), inputs, {"train": rows})


def plain_requests(data: PreparedData, split: str = "train") -> dict[tuple[int, int], dict]:
    """(user, request number) -> the request, read row by row with Python lists."""
    found = {}
    row = 0
    for path in data.split_files(split):  # type: ignore[arg-type]
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            number = row << 24
            for user in file.read_row_group(group).to_pylist():
                row += 1
                for request in user["requests"]:
                    found[user["user"], number] = plain(user, request)
                    number += 1
    return found


def plain(user: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """What a batch should say of one request."""
    end = request["history_end"]
    return {
        "age_feature": user["user_age"],
        "time": request["time"],
        "history": user["history_item"][:end],
        "types": user["history_type"][:end],
        "ages": [request["time"] - t for t in user["history_time"][:end]],
        "items": request["items"],
        "labels": request["labels"],
    }


def keys_of(batches: Any) -> list[tuple[int, int]]:
    """(user, request number) of every request, in order."""
    return [(int(u), int(n)) for b in batches for u, _, n, _ in b.request_rows.tolist()]


def values_of(batch: RequestBatch, key: str) -> Tensor:
    """The ids of one key as often as they are met, from those that are looked up."""
    values = batch.features[key].values()
    return values[batch.places[key]] if key in batch.places else values


def column(batch: RequestBatch, key: str, rows: slice) -> list[int]:
    """The ids of one single-valued key of some users or candidates."""
    return values_of(batch, key)[rows].tolist()


def met(batch: RequestBatch, key: str, events: slice) -> list[int]:
    """The ids of one single-valued key of some events."""
    return values_of(batch, key)[batch.history_rows[events]].tolist()


def owned(batch: RequestBatch, key: str, row: int) -> list[int]:
    """The values that belong to one event or candidate, of a multi-valued key."""
    return values_of(batch, key)[batch.owners[key] == row].tolist()


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_request_exactly_once(world: World, ranks: int, workers: int) -> None:
    seen: Counter[tuple[int, int]] = Counter()
    for rank in range(ranks):
        batches = world.batches(rank=Shard(rank, ranks), seed=1)
        seen.update(keys_of(make_loader(batches, workers)))
    assert seen == Counter(plain_requests(world.data).keys())
    # The number alone tells requests apart, also those of different files.
    assert len({number for _, number in seen}) == len(seen)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 1), (3, 2), (2, 2)])
def test_the_rest_of_an_epoch_is_dealt_out_among_others(
    world: World, before: int, after: int
) -> None:
    """Some batches by some ranks, the rest by others, and by a third number: each request once."""
    read = Consumed()
    seen: Counter[tuple[int, int]] = Counter()
    for ranks, most in ((before, 2), (after, 3), (before + after, 10**9)):
        had = Consumed(read.intervals.copy())
        for rank in range(ranks):
            batches = world.batches(rank=Shard(rank, ranks), seed=1, without=had)
            for batch in islice(batches, most + rank if most < 10**9 else None):
                seen.update(keys_of([batch]))
                read.add(batch.request_rows[:, 2].numpy())
    assert seen == Counter(plain_requests(world.data).keys())
    # All that there is, row group by row group.
    groups = sum(pq.ParquetFile(p).num_row_groups for p in world.data.split_files("train"))
    assert len(read.intervals) <= groups


@pytest.mark.parametrize("seed", [None, 3])
def test_contents_equal_a_plain_reading(world: World, seed: int | None) -> None:
    expected = plain_requests(world.data)
    items = world.data.items.to_pydict()
    number_seen = 0
    for batch in world.batches(seed=seed):
        events, candidates = batch.history_offsets.tolist(), batch.candidate_offsets.tolist()
        for r, (user, time, number, visible) in enumerate(batch.request_rows.tolist()):
            number_seen += 1
            want = expected[user, number]
            assert time == want["time"]
            assert visible == len(want["history"])
            assert column(batch, "user", slice(r, r + 1)) == [user]
            assert column(batch, "user.age", slice(r, r + 1)) == [want["age_feature"]]
            at = slice(events[r], events[r + 1])
            assert batch.history_type[at].tolist() == want["types"]
            assert batch.history_age[at].tolist() == want["ages"]
            of = slice(candidates[r], candidates[r + 1])
            assert batch.labels[of].tolist() == want["labels"]
            assert batch.candidate_items[of].tolist() == want["items"]
            assert batch.candidate_placed[of].tolist() == [i % 3 > 0 for i in want["items"]]
            history = want["history"]
            assert batch.history_items[batch.history_rows[at]].tolist() == history
            assert met(batch, "history.item", at) == history
            assert met(batch, "history.category", at) == [items["category"][i] for i in history]
            assert met(batch, "history.sid1", at) == [code(world, i, 0) for i in history]
            assert met(batch, "history.sid2", at) == [code(world, i, 1) for i in history]
            assert batch.history_codes[at].tolist() == world.codes[history].tolist()
            for row, item in zip(batch.history_rows[at].tolist(), history, strict=True):
                assert owned(batch, "history.tags", row) == items["tags"][item]
            wanted = want["items"]
            assert batch.candidate_codes[of].tolist() == world.codes[wanted].tolist()
            assert column(batch, "candidate.item", of) == wanted
            assert column(batch, "candidate.category", of) == [items["category"][i] for i in wanted]
            assert column(batch, "candidate.sid1", of) == [code(world, i, 0) for i in wanted]
            assert column(batch, "candidate.sid2", of) == [code(world, i, 1) for i in wanted]
            for place, item in enumerate(wanted):
                assert owned(batch, "candidate.tags", candidates[r] + place) == items["tags"][item]
            paths = [
                world.codes[i, 0] * CODES[1] + world.codes[i, 1] if i % 3 else CODES[0] * CODES[1]
                for i in want["items"]
            ]
            assert column(batch, "candidate.prefix2", of) == paths
        # Each item once, whoever met it, all of them in the first request.
        distinct = sorted(
            {i for u, _, n, _ in batch.request_rows.tolist() for i in expected[u, n]["history"]}
        )
        assert batch.history_items.tolist() == distinct
        for key, asked in batch.features.to_dict().items():
            ids = asked.values().tolist()
            assert ids == sorted(set(ids)), key
            assert asked.lengths().tolist() == [len(ids), *[0] * (batch.num_requests - 1)]
    assert number_seen == len(expected)


def test_lengths_and_scale_are_consistent(world: World) -> None:
    for batch in world.batches(seed=0):
        assert batch.features.stride() == batch.num_requests
        assert int(batch.history_offsets[-1]) == batch.num_events
        assert int(batch.candidate_offsets[-1]) == batch.num_candidates
        assert float(batch.loss_scale) == pytest.approx(1 / batch.num_candidates)


def test_max_history_keeps_the_newest(world: World) -> None:
    expected = plain_requests(world.data)
    short = replace(world.spec, max_history=3)
    for batch in world.batches(spec=short):
        for r, (user, _, number, visible) in enumerate(batch.request_rows.tolist()):
            history = expected[user, number]["history"]
            at = slice(*batch.history_offsets[r : r + 2].tolist())
            assert met(batch, "history.item", at) == history[-3:]
            # Predictions say how long the history is, whatever the model takes of it.
            assert visible == len(history)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("seed", [None, 0])
def test_budgets_are_kept_and_used(world: World, ranks: int, seed: int | None) -> None:
    batches = list(world.batches(rank=Shard(0, ranks), seed=seed))
    tokens = [b.num_events + CONFIG.candidate_cost * b.num_candidates for b in batches]
    candidates = [b.num_candidates for b in batches]
    limit, most = CONFIG.batch_tokens // ranks, CONFIG.max_candidates // ranks
    assert max(tokens) <= limit
    assert max(candidates) <= most
    # A batch ends where the next request would not fit (30 events and 5 candidates at most).
    for token, candidate in zip(tokens[:-1], candidates[:-1], strict=True):
        assert token > limit - 50 or candidate > most - 5


def test_a_request_beyond_the_budget_goes_alone(world: World) -> None:
    tiny = CONFIG.model_copy(update={"batch_tokens": 1})
    batches = list(world.batches(config=tiny))
    assert {b.num_requests for b in batches} == {1}
    assert len(batches) == len(plain_requests(world.data))


def test_order_depends_on_seed_and_epoch_alone(world: World) -> None:
    first = keys_of(world.batches(seed=1))
    assert keys_of(world.batches(seed=1)) == first
    assert keys_of(world.batches(seed=2)) != first
    assert keys_of(world.batches(seed=1, epoch=1)) != first
    in_file_order = keys_of(world.batches())
    assert in_file_order != first
    assert in_file_order == list(plain_requests(world.data))


def same_batches(found: Iterator[RequestBatch], expected: list[RequestBatch]) -> None:
    found_list = list(found)
    assert [keys_of([b]) for b in found_list] == [keys_of([b]) for b in expected]
    for a, b in zip(found_list, expected, strict=True):
        assert torch.equal(a.features.values(), b.features.values())
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skip", [0, 1, 2, -2, -1])
def test_skip_drops_the_first_batches(world: World, workers: int, skip: int) -> None:
    options: dict[str, Any] = {"seed": 4, "rank": Shard(1, 2)}
    whole = list(make_loader(world.batches(**options), workers))
    assert len(whole) > 6
    skip %= len(whole)  # near the end one worker has run out before the other
    rest = make_loader(world.batches(**options, skip=skip), workers)
    same_batches(iter(rest), whole[skip:])


def test_skipping_everything_gives_nothing(world: World) -> None:
    assert list(world.batches(seed=4, skip=10_000)) == []


@pytest.mark.parametrize("buffer", [1, 7, 10**6])
def test_shuffle_buffers_of_any_size(world: World, buffer: int) -> None:
    config = CONFIG.model_copy(update={"shuffle_requests": buffer})
    found = keys_of(world.batches(seed=2, config=config))
    assert sorted(found) == sorted(plain_requests(world.data))
    # A buffer's end makes no small batch: all but the last are as full as with one buffer.
    counts = [b.num_candidates for b in world.batches(seed=2, config=config)]
    assert min(counts[:-1]) > CONFIG.max_candidates // 2


def test_more_shards_than_users(tmp_path: Path) -> None:
    rows = random_rows(np.random.default_rng(0), 3, ITEMS, user_features=USER_FEATURES)
    world = make_world(tmp_path, InputConfig(), {"train": rows})
    found = [keys_of(world.batches(rank=Shard(i, 40), seed=0)) for i in range(40)]
    assert sorted(key for part in found for key in part) == sorted(plain_requests(world.data))
    assert sum(not part for part in found) >= 37


def test_the_empty_batch_has_the_keys_of_a_full_one(world: World) -> None:
    empty = BatchAssembler(world.spec, world.items).empty()
    full = next(iter(world.batches()))
    assert empty.features.keys() == full.features.keys()
    assert empty.features.stride() == 1
    assert empty.num_candidates == empty.num_events == 0
    assert empty.owners.keys() == full.owners.keys()
    assert empty.places.keys() == full.places.keys()
    for name in ("history_codes", "candidate_codes"):
        assert getattr(empty, name).shape == (0, len(CODES))
    for name in ("labels", "history_age", "history_type", "features", "request_rows"):
        one, other = getattr(empty, name), getattr(full, name)
        one = one.values() if name == "features" else one
        other = other.values() if name == "features" else other
        assert one.dtype == other.dtype, name


def test_without_semantic_ids(tmp_path: Path) -> None:
    data = write_prepared(tmp_path, items=ITEMS)
    inputs = InputConfig(candidate=["id"], history=["id"])
    spec = build_input_spec(inputs, data.manifest, ())
    batches = list(RequestBatches(data, "train", spec, load_items(data, spec, None), CONFIG))
    assert batches[0].history_codes.shape == (batches[0].num_events, 0)


# --- bad input -------------------------------------------------------------------------


def break_row(change: Callable[[dict[str, Any]], None], at: int = 30) -> dict[str, Any]:
    rows = random_rows(np.random.default_rng(1), USERS, ITEMS, user_features=USER_FEATURES)
    change(rows[at])
    return {"train": rows}


def set_history(row: dict[str, Any]) -> None:
    row["history_item"][-1] = ITEMS
    row["requests"][-1] |= {"history_end": len(row["history_item"]), "time": 5_000}


def set_type(row: dict[str, Any]) -> None:
    row["history_type"][0] = 1


def set_candidate(row: dict[str, Any]) -> None:
    row["requests"][0]["items"][0] = -1


def set_user_feature(row: dict[str, Any]) -> None:
    row["user_age"] = 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_history, r"history_item = 50 is outside its table of 50 rows"),
        (set_type, r"history_type = 1 is outside its table of 1 rows"),
        (set_candidate, r"candidate_item = -1 is outside its table of 50 rows"),
        (set_user_feature, r"age = 7 is outside its table of 7 rows"),
    ],
)
def test_out_of_range_names_feature_id_file_and_row(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    # 41 users in three files of 14, 14 and 13: user 30 is row 2 of the third.
    world = make_world(tmp_path, InputConfig(), break_row(change))
    with pytest.raises(UserError, match=rf"part-00002\.parquet: row 2: {message}"):
        list(world.batches(seed=0, rank=Shard(0, 1)))


@pytest.mark.parametrize("max_history", [None, 1])
def test_an_event_that_no_request_sees_is_checked_with_its_own_row(
    tmp_path: Path, max_history: int | None
) -> None:
    def change(row: dict[str, Any]) -> None:
        row |= {"history_item": [99, 1], "history_type": [0, 0], "history_time": [1, 2]}
        end = 0 if max_history is None else 2
        row["requests"] = [{"time": 9, "history_end": end, "items": [1], "labels": [1.0]}]

    world = make_world(tmp_path, InputConfig(max_history=max_history), break_row(change))
    with pytest.raises(UserError, match=r"part-00002\.parquet: row 2: history_item = 99"):
        list(world.batches())


@pytest.mark.parametrize("change", [set_history, set_candidate, set_user_feature])
def test_out_of_range_may_go_to_the_unknown_row(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    world = make_world(tmp_path, InputConfig(out_of_range="unknown"), break_row(change))
    zeros = 0
    for batch in world.batches():
        for key in ("history.item", "candidate.item", "user.age"):
            values = batch.features[key].values()
            zeros += int((values == 0).sum()) if key != "user.age" else 0
            assert int(values.min()) >= 0
            assert int(values.max()) < (7 if key == "user.age" else ITEMS)
    assert (zeros > 0) == (change is not set_user_feature)


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def test_missing_column(tmp_path: Path) -> None:
    world = make_world(tmp_path, InputConfig())
    path = world.data.split_files("train")[1]
    rewrite(path, lambda table: table.drop_columns(["history_time"]))
    with pytest.raises(UserError, match=r"part-00001\.parquet: column 'history_time' is missing"):
        list(world.batches())


def test_types_that_other_writers_spell_differently(world: World, tmp_path: Path) -> None:
    """Element names and nullability are the writer's own: what ``prepare`` accepts is read."""

    def spelled(field: pa.Field) -> pa.Field:
        if not field.name.startswith("history_"):
            return field.with_nullable(False)
        element = pa.field("element", field.type.value_type, nullable=False)
        return field.with_type(pa.list_(element))

    copy = tmp_path / "data"
    shutil.copytree(world.data.root, copy)
    for path in (copy / "train").iterdir():
        rewrite(path, lambda table: table.cast(pa.schema(map(spelled, table.schema))))
    again = replace(world, data=PreparedData(copy))
    assert keys_of(again.batches(seed=1)) == keys_of(world.batches(seed=1))


def test_wrong_type(tmp_path: Path) -> None:
    world = make_world(tmp_path, InputConfig())
    path = world.data.split_files("train")[0]

    def as_text(table: Any) -> Any:
        at = table.column_names.index("user")
        return table.set_column(at, "user", table["user"].cast("string"))

    rewrite(path, as_text)
    message = r"part-00000\.parquet: column 'user' is string, expected int32"
    with pytest.raises(UserError, match=message):
        list(world.batches())


@pytest.mark.parametrize("where", ["footer", "data"])
def test_damaged_file(tmp_path: Path, where: str) -> None:
    world = make_world(tmp_path, InputConfig())
    path = world.data.split_files("train")[2]
    content = bytearray(path.read_bytes())
    if where == "footer":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[4:400] = b"\xff" * 396
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"part-00002\.parquet: damaged Parquet file"):
        list(world.batches())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_process_tells_what_is_wrong(tmp_path: Path, workers: int) -> None:
    world = make_world(tmp_path, InputConfig(), break_row(set_candidate))
    with pytest.raises(UserError, match=r"row 2: candidate_item = -1 is outside"):
        list(make_loader(world.batches(), workers))


def test_empty_split(tmp_path: Path) -> None:
    world = make_world(tmp_path, InputConfig(), {"valid": []})
    with pytest.raises(UserError, match=r"valid: the split is empty \(no request\)"):
        list(world.batches("valid"))
