from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hisac_rec.errors import UserError
from hisac_rec.planning.check import check_plan, matches
from hisac_rec.planning.plan_io import load_plan

TYPES = ("row_wise", "table_wise", "column_wise")


def only(sharding_type: str) -> str:
    return f'defaults.sharding_types=["{sharding_type}"]'


@pytest.mark.parametrize("cluster", ["1xcpu", "2xcpu", "8xh100", "128xh100"])
@pytest.mark.parametrize("sharding_type", TYPES)
def test_json_round_trip_is_exact(plan_small, tmp_path: Path, cluster: str, sharding_type: str):
    plan = plan_small(cluster, only(sharding_type))
    file = tmp_path / "deep" / "plan.json"
    plan.save(file)
    again = load_plan(file)
    assert again == plan
    assert again.to_torchrec() == plan.to_torchrec()
    assert {table.sharding_type for _, _, table in again.tables()} == {sharding_type}
    assert list(file.parent.iterdir()) == [file]  # no temporary file stays


def test_json_is_readable(plan_small):
    text = plan_small("8xh100", only("row_wise")).to_json()
    shards = [line for line in text.splitlines() if '"placement"' in line]
    assert len(shards) == 4 * 8  # one line each
    assert json.loads(shards[1].strip().rstrip(","))["placement"] == "rank:1/cuda:1"
    assert json.loads(text)["planner"]["topology"]["hbm_gib"] == 79


def test_replicated_tables_survive_on_gpus(plan_small):
    plan = plan_small("8xh100", only("data_parallel"))
    sharding = plan.to_torchrec().plan["trained"]["item"]
    assert sharding.sharding_spec is None
    assert sharding.ranks == list(range(8))


@pytest.mark.parametrize("sharding_type", TYPES)
def test_groups_have_the_same_plan_on_other_ranks(plan_small, small, sharding_type: str):
    hosts = ("topology.hosts=2", "topology.sharding_group=8", "topology.sync_every=3")
    plan = plan_small("8xh100", only(sharding_type), *hosts)
    assert (plan.world_size, plan.group_size) == (16, 8)
    check_plan(plan, small["SmallModel"]("meta"), world_size=16)
    alone = plan_small("8xh100", only(sharding_type), 'defaults.compute_kernels=["fused"]')
    assert plan.to_torchrec() == alone.to_torchrec()
    for path, tables in plan.to_torchrec(group=1).plan.items():
        for name, moved in tables.items():
            first = alone.to_torchrec().plan[path][name]
            assert moved.ranks == [rank + 8 for rank in first.ranks]
            for shard, other in zip(
                moved.sharding_spec.shards, first.sharding_spec.shards, strict=True
            ):
                assert shard.placement.rank() == other.placement.rank() + 8
                assert shard.placement.device() == other.placement.device()
                assert shard.shard_offsets == other.shard_offsets


def test_what_cannot_be_averaged_is_refused_in_groups(plan_small):
    hosts = ("topology.hosts=2", "topology.sharding_group=8")
    for rule in ('compute_kernels=["fused_uvm"]', 'sharding_types=["data_parallel"]'):
        with pytest.raises(UserError, match="with a sharding_group, table 'item' needs"):
            plan_small("8xh100", f"defaults.{rule}", *hosts)
    assert plan_small("8xh100", *hosts).modules["trained"]["item"].compute_kernel == "fused"


def test_a_plan_of_the_model_passes(plan_small, small):
    plan = plan_small("2xcpu")
    model = small["SmallModel"]("meta")
    check_plan(plan, model, world_size=2)
    assert matches(plan, model)
    assert not matches(plan, small["SmallModel"]("meta", rows={"user": 14}))


def test_another_shape_names_the_table_and_both_shapes(plan_small, small):
    with pytest.raises(
        UserError,
        match=r"p\.json: table 'user' of module 'trained' is 14 x 16 float32 in the model and "
        r"13 x 16 float32 in the plan; the plan is for another model",
    ):
        check_plan(plan_small("2xcpu"), small["SmallModel"](rows={"user": 14}), source="p.json")


def test_another_type_is_a_mismatch(plan_small, small):
    model = small["SmallModel"]()
    model.frozen.embeddings["semantic"].to(torch.float32)
    with pytest.raises(UserError, match=r"'semantic'.* is 101 x 8 float32 .* 101 x 8 float16"):
        check_plan(plan_small("2xcpu"), model)


def test_a_table_that_is_missing_from_the_plan(plan_small, small):
    plan = plan_small("2xcpu")
    less = plan.model_copy(update={"modules": {"trained": plan.modules["trained"]}})
    with pytest.raises(UserError, match=r"'semantic' \(101 x 8 float16\) .* is not in the plan"):
        check_plan(less, small["SmallModel"]("meta"))


def test_a_table_that_is_missing_from_the_model(plan_small, small):
    model = small["SmallModel"]("meta")
    del model.frozen
    with pytest.raises(UserError, match=r"'semantic' .* is in the plan but not in the model"):
        check_plan(plan_small("2xcpu"), model)


def test_another_world_size(plan_small, small):
    with pytest.raises(UserError, match=r"made for 2 ranks, this job has 3"):
        check_plan(plan_small("2xcpu"), small["SmallModel"]("meta"), world_size=3)


def test_shards_that_do_not_cover_the_table(plan_small, small, tmp_path: Path):
    document = json.loads(plan_small("2xcpu", only("row_wise")).to_json())
    document["modules"]["trained"]["item"]["shards"].pop()
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"table 'item' hold 816 values, the table 1,616"):
        check_plan(load_plan(file), small["SmallModel"]("meta"))


def edited(plan, change):
    """The plan after ``change`` of the shards of 'item' in its JSON."""
    document = json.loads(plan.to_json())
    change(document["modules"]["trained"]["item"]["shards"])
    return type(plan).model_validate(document)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offset", [0, 0], "hold some values more than once and others not at all"),
        ("offset", [52, 0], "hold some values more than once and others not at all"),
        ("rank", 2, r"one is on rank 2 at 'rank:1/cpu', the plan is for ranks 0 to 1"),
        ("rank", 0, r"one is on rank 0 at 'rank:1/cpu'"),
        ("weight_bytes", 5, r"at row 51, column 0 has 3,200 bytes of weights and 0 of .* says 5"),
        ("state_bytes", 5, r"0 of optimiser state, the plan says 3,200 and 5; plan again"),
    ],
)
def test_shards_that_were_changed_are_named(plan_small, small, key, value, message):
    plan = edited(
        plan_small("2xcpu", only("row_wise")), lambda shards: shards[1].update({key: value})
    )
    with pytest.raises(UserError, match=f"shards of table 'item'.*{message}"):
        check_plan(plan, small["SmallModel"]("meta"))


def test_row_wise_shards_must_be_equal(plan_small, small):
    """TorchRec looks rows up as if they were."""

    def uneven(shards: list) -> None:
        shards[0].update(size=[60, 16], weight_bytes=60 * 64)
        shards[1].update(size=[41, 16], offset=[60, 0], weight_bytes=41 * 64)

    plan = edited(plan_small("2xcpu", only("row_wise")), uneven)
    with pytest.raises(UserError, match="not equal blocks of rows in the order of ranks"):
        check_plan(plan, small["SmallModel"]("meta"))


def test_column_shards_may_not_overlap(plan_small, small):
    plan = edited(
        plan_small("2xcpu", only("column_wise")), lambda shards: shards[1].update(offset=[0, 4])
    )
    with pytest.raises(UserError, match="hold some values more than once"):
        check_plan(plan, small["SmallModel"]("meta"))


def test_a_copy_that_is_missing(plan_small, small):
    plan = edited(plan_small("8xh100", only("data_parallel")), lambda shards: shards.pop())
    with pytest.raises(UserError, match="there is not one whole copy on every rank"):
        check_plan(plan, small["SmallModel"]("meta"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such plan"),
        ("{", "not readable as JSON"),
        ("{}", "not a sharding plan: key 'digest'"),
        ("[]", "not a sharding plan"),
        ('{"version": 1}', "key 'version'"),
    ],
)
def test_files_that_are_no_plan(tmp_path: Path, text: str | None, message: str):
    file = tmp_path / "plan.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_plan(file)
    assert str(file) in str(error.value)


def run(script: Path, plan: Path, ranks: int, optimizer: str) -> dict:
    """Train three steps under DistributedModelParallel by a saved plan."""
    out = plan.with_suffix(".out.json")
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={ranks}", str(script), str(plan), optimizer, str(out)),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def one_process_losses(plan_small, script, tmp_path_factory) -> list[float]:
    file = tmp_path_factory.mktemp("one") / "plan.json"
    plan_small("1xcpu").save(file)
    return run(script, file, 1, "sgd")["losses"]


@pytest.mark.distributed
@pytest.mark.parametrize(
    "sharding_type",
    [TYPES[0], *(pytest.param(one, marks=pytest.mark.slow) for one in TYPES[1:])],
)
def test_two_ranks_train_by_a_plan_that_went_through_json(
    plan_small, script, tmp_path: Path, one_process_losses, sharding_type: str
):
    file = tmp_path / "plan.json"
    plan = plan_small("2xcpu", only(sharding_type))
    plan.save(file)
    seen = run(script, file, 2, "sgd")
    assert seen["losses"] == pytest.approx(one_process_losses, rel=1e-5)
    assert seen["losses"][2] < seen["losses"][0]
    assert all(rank["frozen"] for rank in seen["ranks"])
    for path, name, table in plan.tables():
        for rank in (0, 1):
            held = seen["ranks"][rank]["local"]
            planned = [list(s.size) for s in table.shards if s.rank == rank]
            assert held.get(f"{path}.embeddings.{name}.weight") == (planned[0] if planned else None)


@pytest.mark.distributed
def test_two_ranks_train_with_row_wise_state(plan_small, script, tmp_path: Path):
    file = tmp_path / "plan.json"
    plan_small("2xcpu", optimizer="rowwise_adagrad").save(file)
    losses = run(script, file, 2, "rowwise_adagrad")["losses"]
    assert losses[2] < losses[0]
