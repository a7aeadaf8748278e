"""Start from another run: what is kept, what is new, what is dropped, on one rank and on two."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from checkpoints.whole_state import whole_state
from torch import Tensor
from training import one_process, planner_of, predict_run, small_config, torchrun, train_run

from hisac_rec.checkpoints.location import locate
from hisac_rec.checkpoints.row_matching import RowMatcher
from hisac_rec.checkpoints.saving import load_checkpoint, read_manifest
from hisac_rec.checkpoints.warm_start import WarmStart, warm_start
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare
from hisac_rec.semantic.fit import fit_semantic_ids, resolve_config
from hisac_rec.semantic.store import Semantics, load_semantics
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.run import RunFolder

GONE = 30
"""Items of the first data set that the second one lacks; it has as many others."""


@dataclass(frozen=True)
class Case:
    before: PreparedData
    now: PreparedData
    run: Path


def renamed(path: Path, column: str, values: list[str | None]) -> None:
    table = pq.read_table(path, memory_map=False)
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, column, pa.array(values, pa.string())), path)


@pytest.fixture(scope="module")
def case(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A run on two column shards, and a data set that knows other items, users and codes.

    Item i of the second data set is called what item 151 - i + 30 of the first one is: ids are in
    the opposite order, 30 names are new and 30 gone. Segments are in another order.
    """
    folder = tmp_path_factory.mktemp("warm")
    synthetic = dict(small_data.manifest.definition["synthetic"]) | {"seed": 5, "users": 150}
    codes = {"source": "content", "codes": [5, 4]}
    definition = DatasetDefinition.model_validate(
        {"name": "later", "synthetic": synthetic, "semantic_ids": codes}
    )
    now = prepare(definition, folder / "later")
    fit_semantic_ids(now, resolve_config(now))
    items = small_data.manifest.items
    names = [None, *(str(items - item + GONE) for item in range(1, items))]
    renamed(now.root / "items.parquet", "raw_id", names)
    segments = pq.read_table(now.root / "vocab/user_segment.parquet")["value"].to_pylist()
    renamed(
        now.root / "vocab/user_segment.parquet", "value", [None, *reversed(segments[2:]), "new"]
    )
    train_run(small_config(), small_data, folder / "run", plan=planner_of(1, "column_wise"))
    return Case(small_data, PreparedData(now.root), folder / "run")


def state_of(
    config_of: tuple[str, ...], data: PreparedData, start: WarmStart | None, sharding: str
) -> dict[str, Tensor]:
    """All of a model before its first step."""
    with one_process() as ranks:
        job = open_job(small_config(*config_of), data)
        model = shard(job, resolve_plan(job, ranks, planner_of(1, sharding)), ranks)
        optimizers = Optimizers(model, job.config.train)
        if start is not None:
            warm_start(start, job, model, optimizers)
        return whole_state(model, optimizers)


def trained_state(case: Case) -> dict[str, Tensor]:
    """What the run ended with."""

    path = RunFolder(case.run).checkpoints().find("best")
    with one_process() as ranks:
        job = open_job(small_config(), case.before)
        model = shard(job, resolve_plan(job, ranks, None), ranks)
        optimizers = Optimizers(model, job.config.train)
        load_checkpoint(path, model, optimizers, read_manifest(path))
        return whole_state(model, optimizers)


def table(state: dict[str, Tensor], name: str, what: str = "weight") -> Tensor:
    ending = f".{name}.weight" if what == "weight" else f"/{name}.{what}"
    (key,) = [key for key in state if key.endswith(ending)]
    return state[key]


@pytest.mark.parametrize("sharding", ["row_wise", "column_wise", "table_wise"])
def test_rows_follow_what_they_stand_for(case: Case, sharding: str) -> None:
    there = trained_state(case)
    fresh = state_of((), case.now, None, sharding)
    found = state_of((), case.now, WarmStart(case.run, optimizer=True), sharding)
    assert found.keys() == fresh.keys()
    items = case.before.manifest.items
    old = torch.tensor([0, *(items - item + GONE for item in range(1, items))])
    known = old < items
    assert int((~known).sum()) == GONE
    for what in ("weight", "momentum1"):
        rows, before = table(found, "item", what), table(there, "item", what)
        torch.testing.assert_close(rows[known], before[old[known]])
        assert torch.equal(rows[~known], table(fresh, "item", what)[~known])
    segment, before = table(found, "user_segment"), table(there, "user_segment")
    assert torch.equal(segment[1:-1], before[2:].flip(0))
    assert torch.equal(segment[-1], table(fresh, "user_segment")[-1])
    assert torch.equal(table(found, "user"), table(there, "user")[:151])  # the same names
    dense = [key for key in there if key.endswith("weight") and "embeddings" not in key]
    assert dense
    for key in dense:
        assert torch.equal(found[key], there[key]) == (found[key].shape == there[key].shape), key
    assert any(key.endswith("exp_avg") and torch.equal(found[key], there[key]) for key in there)


def test_a_table_may_move_between_collections(case: Case) -> None:
    """Rows that were sent one by one may be summed where they are from now on."""
    start = WarmStart(case.run, optimizer=True)
    pooled = ("tables.pool=true", "tables.pool_min_rows=1")
    found = state_of(pooled, case.now, start, "table_wise")
    wanted = state_of((), case.now, start, "table_wise")
    assert any(".embedding_bags." in key for key in found)
    for name in ("item", "sid1", "sid2", "user"):
        for what in ("weight", "momentum1"):
            assert torch.equal(table(found, name, what), table(wanted, name, what))


def test_codes_follow_the_items_they_share(case: Case) -> None:
    """By counting, one row after the other."""
    here, there = load_semantics(case.now), load_semantics(case.before)
    matcher = RowMatcher(case.now, case.before, here, there)
    items = case.before.manifest.items
    pairs = [(i, items - i + GONE) for i in range(1, items) if items - i + GONE < items]
    for name, level in (("sid1", 0), ("sid2", 1)):
        match = matcher.match(name)
        assert not isinstance(match, str)
        assert match.by == "the items they share"
        for code, found in enumerate(match.rows(0, here.code_counts[level])):
            votes = np.bincount(
                [there.codes[old, level] for new, old in pairs if here.codes[new, level] == code],
                minlength=there.code_counts[level],
            )
            assert found == (votes.argmax() if votes.any() else -1)
    rows = here.code_counts[0] * here.code_counts[1]
    match = matcher.match("prefix2")
    assert not isinstance(match, str)
    whole = match.rows(0, rows)
    assert np.concatenate([match.rows(0, 7), match.rows(7, rows)]).tolist() == whole.tolist()
    nodes = {here.prefix_ids[new, 1] for new, _ in pairs}
    assert {int(row) for row in np.flatnonzero(whole >= 0)} == nodes


def test_code_words_that_are_the_same_keep_their_rows(case: Case) -> None:
    there = load_semantics(case.before)
    shuffled = Semantics(there.codes[::-1], there.vectors, there.codebook, there.known[::-1])
    match = RowMatcher(case.now, case.before, shuffled, there).match("prefix2")
    assert not isinstance(match, str)
    assert match.by == "the same code words"
    assert match.rows(3, 9).tolist() == [3, 4, 5, 6, 7, 8]


def test_the_same_data_keeps_everything(case: Case) -> None:
    found = state_of((), case.before, WarmStart(case.run, optimizer=True), "row_wise")
    there = trained_state(case)
    assert found.keys() == there.keys()
    for key, value in there.items():
        torch.testing.assert_close(found[key], value, msg=key)


def test_other_shapes_and_inputs_are_dropped_and_said(case: Case, tmp_path: Path) -> None:
    wide = small_config("tables.dim=16", 'inputs.user=["id"]', "ranker.over_layers=[16, 4]")
    train_run(wide, case.now, tmp_path / "run", warm=WarmStart(case.run))
    report = RunFolder(tmp_path / "run").warm_start.read_text()
    assert "| item | 151 | 151 | 0 | 151 | 151 | rows of 8 there, of 16 here |" in report
    assert "| user_segment | | | | | all | this model has no such table |" in report
    assert "there: not kept" in report


def test_training_starts_where_the_other_run_ended(case: Case, tmp_path: Path) -> None:
    """Better before its first step than any fresh model; and a resumed run stays what it is."""
    still = ("train.dense_lr=1e-30", "train.sparse_lr=1e-30", "train.epochs=1")
    cold = train_run(small_config(*still), case.now, tmp_path / "cold")
    warm = train_run(small_config(*still), case.now, tmp_path / "warm", warm=WarmStart(case.run))
    assert warm["logloss"] < cold["logloss"]
    run = RunFolder(tmp_path / "warm")
    report = run.warm_start.read_text()
    assert "| item | 151 | 151 | 121 | 30 | 30 | raw ids |" in report
    before = predict_run(run.root, case.now, checkpoint="last")["logit"]
    train_run(small_config(*still), case.now, run.root, warm=WarmStart(case.run), resume=True)
    assert (predict_run(run.root, case.now, checkpoint="last")["logit"] == before).all()


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_start_from_what_one_left(case: Case, tmp_path: Path) -> None:
    script = tmp_path / "warm.py"
    script.write_text(
        f"""
import torch
from pathlib import Path
from checkpoints.whole_state import whole_state
from training import planner_of, small_config
from hisac_rec.data.contract import PreparedData
from hisac_rec.train.distributed import process_group
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers
from hisac_rec.checkpoints.warm_start import WarmStart, warm_start

with process_group() as ranks:
    for sharding in ("row_wise", "column_wise"):
        job = open_job(small_config(), PreparedData(Path({str(case.now.root)!r})))
        model = shard(job, resolve_plan(job, ranks, planner_of(2, sharding)), ranks)
        optimizers = Optimizers(model, job.config.train)
        start = WarmStart(Path({str(case.run)!r}), optimizer=True)
        report = warm_start(start, job, model, optimizers)
        found = whole_state(model, optimizers)
        if ranks.first:
            torch.save((found, report.markdown()), {str(tmp_path)!r} + f"/{{sharding}}.pt")
"""
    )
    torchrun(script)
    alone = state_of((), case.now, WarmStart(case.run, optimizer=True), "row_wise")
    for sharding in ("row_wise", "column_wise"):
        found, report = torch.load(tmp_path / f"{sharding}.pt")
        assert "| item | 151 | 151 | 121 | 30 | 30 | raw ids |" in report
        assert found.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(found[key], value, msg=key)


def test_messages(case: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a run nor a checkpoint; nothing to start from"):
        state_of((), case.now, WarmStart(tmp_path), "row_wise")
    with pytest.raises(UserError, match=r"was made on other data than .*later .*--warm-start-data"):
        state_of((), case.now, WarmStart(case.run, data=case.now.root), "row_wise")


def test_a_checkpoint_by_itself(case: Case) -> None:
    """Beside its run, or anywhere else once its data is named."""
    checkpoint = RunFolder(case.run).checkpoints().find("best")
    wanted = state_of((), case.now, WarmStart(checkpoint), "row_wise")
    elsewhere = locate("memory://bucket/kept")
    for file in checkpoint.iterdir():
        (elsewhere / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="lies beside no run; name its data with --warm-start-data"):
        state_of((), case.now, WarmStart(elsewhere), "row_wise")
    start = WarmStart(elsewhere, data=case.before.root)
    found = state_of((), case.now, start, "row_wise")
    elsewhere.fs.store.clear()  # type: ignore[attr-defined]
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
