"""Open vocabularies in a whole training: tables of few rows, pooled or not, started from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training import logged, one_process, predict_run, small_config, train_run

from hisac_rec.checkpoints.managed_state import collision_modules, stored_mapping
from hisac_rec.checkpoints.restore import flat_state
from hisac_rec.checkpoints.stored_tensors import StoredTensors
from hisac_rec.checkpoints.warm_start import WarmStart, warm_start
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.evaluation.metrics import auc
from hisac_rec.managed.mapping import FREE, RowMapping
from hisac_rec.managed.modules import CollisionModule
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.planning.plan_io import Plan, load_plan
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import Batches, predict
from hisac_rec.train.run import RunFolder

HASHED = (
    'tables.vocabulary.item={kind="hashed",rows=40,hashes=2}',
    'tables.vocabulary.user={kind="hashed",rows=100}',
)

SHORT = ("train.max_candidates=300",)


def test_fewer_rows_learn(small_data: PreparedData, tmp_path: Path) -> None:
    """Trained, planned, evaluated and started from; what another vocabulary has is not kept."""
    out = tmp_path / "hashed"
    train_run(small_config(*HASHED, "train.epochs=2"), small_data, out)
    tables = {name: table for _, name, table in load_plan(RunFolder(out).plan).tables()}
    assert (tables["item"].rows, tables["user"].rows) == (40, 100)
    assert max(logged(out, "train", "coverage/item").values()) > 0.9
    found = predict_run(out, small_data)
    assert auc(found["label"], found["score"]) > 0.55
    same = WarmStart(out)
    train_run(small_config(*HASHED, *SHORT), small_data, tmp_path / "same", warm=same)
    lines = (tmp_path / "same" / "warm_start.md").read_text()
    assert "| item | 40 | 40 | 40 | 0 | 0 | the same hashes of raw ids |" in lines
    other = (*HASHED[1:], 'tables.vocabulary.item={kind="hashed",rows=41}')
    train_run(small_config(*other, *SHORT), small_data, tmp_path / "other", warm=same)
    lines = (tmp_path / "other" / "warm_start.md").read_text()
    assert "another vocabulary: hashed (40 rows, 2 hashes) there, hashed (41 rows) here" in lines


def test_a_run_goes_on_with_its_own_vocabulary_alone(
    small_data: PreparedData, tmp_path: Path
) -> None:
    train_run(small_config(*HASHED, *SHORT), small_data, tmp_path / "run")
    other = small_config(*HASHED, "tables.vocabulary.item.rows=41", "train.epochs=2")
    with pytest.raises(UserError, match=r"vocabulary.item.rows = 40 there, 41"):
        train_run(other, small_data, tmp_path / "run", resume=True)


MANAGED = 'tables.vocabulary.item={kind="managed",rows=64,eviction_every=4}'


def plan_of(data: PreparedData, *overrides: str, **planner: Any) -> Plan:
    """A plan of two ranks, with ``planner``'s keys."""
    config = PlannerConfig.model_validate(
        {"topology": {"devices_per_host": 2, "device": "cpu", "ddr_gib": 8}} | planner
    )
    return open_job(small_config(*overrides), data).plan(config, 8)


def test_a_managed_table_is_planned_with_its_mapping(small_data: PreparedData) -> None:
    """On CPUs and on GPUs; its keys, rows and two counts of each row are memory too."""
    gpus = {"devices_per_host": 2, "device": "cuda", "hbm_gib": 80}
    hashed = MANAGED.replace("managed", "hashed").replace(",eviction_every=4", "")
    for topology in ({}, {"topology": gpus}):
        held = []
        for vocabulary in (MANAGED, hashed):
            rows = {"defaults": {"sharding_types": ["row_wise"]}}
            plan = plan_of(small_data, vocabulary, **topology, **rows)
            (table,) = (one for _, name, one in plan.tables() if name == "item")
            assert (table.rows, table.sharding_type) == (64, "row_wise")
            held.append([shard.hbm_bytes + shard.ddr_bytes for shard in table.shards])
        # A batch asks it for other numbers of ids than a hashed table, but not for less.
        assert all(one - other >= 32 * 32 for one, other in zip(*held, strict=True))


@pytest.mark.parametrize(
    ("overrides", "planner", "message"),
    [
        (
            (MANAGED, "tables.pool=true", "tables.pool_min_rows=1"),
            {},
            r"tables.pool = true: table 'item' has a managed .* set tables.pool_min_rows above 64",
        ),
        ((MANAGED.replace("item", "items"),), {}, r"has no table 'items'; did you mean 'item'"),
        (
            (MANAGED,),
            {"defaults": {"sharding_types": ["column_wise"]}},
            r"column_wise'\] leaves no way to shard table 'item'.*supports row_wise",
        ),
        (
            (MANAGED,),
            {
                "topology": {
                    "devices_per_host": 2,
                    "device": "cpu",
                    "ddr_gib": 8,
                    "sharding_group": 1,
                }
            },
            r"with a sharding_group, table 'item' cannot have a managed vocabulary",
        ),
        (
            (MANAGED.replace("64", "3"),),
            {},
            r"tables.vocabulary.item.rows = 3: in equal blocks over 2 ranks .* choose 4",
        ),
        (
            (MANAGED, "train.sparse_optimizer=adagrad"),
            {"topology": {"devices_per_host": 2, "device": "cuda", "hbm_gib": 80}},
            r"on a GPU, FBGEMM resets .* train.sparse_optimizer = 'rowwise_adagrad' alone",
        ),
        (
            (MANAGED,),
            {"topology": {"hosts": 129, "devices_per_host": 8, "device": "cuda", "hbm_gib": 80}},
            r"TorchRec manages tables on 1,024 ranks at most, these are 1,032",
        ),
    ],
    ids=["pool", "name", "columns", "groups", "rows", "optimiser", "ranks"],
)
def test_what_a_managed_table_cannot_be_is_said_before_training(
    small_data: PreparedData, overrides: tuple[str, ...], planner: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(small_data, *overrides, **planner)


def mapping_of(module: CollisionModule) -> RowMapping:
    """Of one rank that holds all of it."""
    keys, rows = module._mch_sorted_raw_ids.numpy(), module._mch_remapped_ids_mapping.numpy()
    return RowMapping(np.array([0, len(keys)]), keys, rows, {})


def test_managed_rows_start_from_those_of_another_run(
    small_data: PreparedData, tmp_path: Path
) -> None:
    """Keys are raw ids: on another number of rows, each keeps what it has learned.
    Evaluation leaves the mapping as it is."""
    train_run(small_config(MANAGED), small_data, tmp_path / "run")
    last = RunFolder(tmp_path / "run").checkpoints().find("last")
    source = StoredTensors(last)
    before = stored_mapping(source, "item")
    assert before is not None
    with one_process() as ranks:
        job = open_job(small_config(MANAGED.replace("64", "90")), small_data)
        model = shard(job, resolve_plan(job, ranks, None), ranks)
        start = WarmStart(tmp_path / "run", optimizer=True)
        optimizers = Optimizers(model, job.config.train)
        report = warm_start(start, job, model, optimizers).markdown()
        assert "| item | 64 | 90 | 64 | 26 | 0 | keys of raw ids |" in report
        (module,) = collision_modules(model).values()
        keys = before.keys[before.keys != FREE]
        assert len(keys) > 50
        here, there = mapping_of(module).rows_of(keys), before.rows_of(keys)
        found = 0
        for key, value in flat_state(model, optimizers).items():
            if ".embeddings.item." not in key:
                continue
            stored = torch.empty([64, *value.size()[1:]])
            source.read({key: stored})
            local = value.local_tensor()
            torch.testing.assert_close(
                local[torch.from_numpy(here)], stored[torch.from_numpy(there)]
            )
            found += 1
        assert found == 2  # rows and the state of their optimiser
        mapping = module.state_dict()
        held = {name: value.clone() for name, value in mapping.items()}
        batches = Batches(job, ranks).in_order("valid")
        assert sum(len(logits) for _, logits in predict(model, optimizers, ranks, batches))
        assert all(torch.equal(value, held[name]) for name, value in mapping.items())
