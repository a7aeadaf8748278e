"""Each key of a planner config does what it says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchrec.distributed.planner.estimator.config import EmbeddingPerfEstimatorConfig
from torchrec.distributed.planner.estimator.types import PerfCoefficientConfig
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from hisac_rec.config import load_config
from hisac_rec.errors import UserError
from hisac_rec.planning.check import check_hosts
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.planning.constraints import PopularRows
from hisac_rec.planning.footprint import Footprint, dense_bytes
from hisac_rec.planning.planner import make_plan
from hisac_rec.planning.table import rank_bytes, rank_ms
from hisac_rec.shipped import find_config

GIB = 1024**3
ROWS = 10**7
GPU = 'defaults.sharding_types=["row_wise"]'


class OneTable(nn.Module):
    """A table of 10 million rows of 64 columns, read by two features."""

    def __init__(self, dtype: DataType = DataType.FP32) -> None:
        super().__init__()
        self.tables = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name="item",
                    num_embeddings=ROWS,
                    embedding_dim=64,
                    feature_names=["history", "candidate"],
                    data_type=dtype,
                )
            ],
            device=torch.device("meta"),
        )
        self.head = nn.Linear(64, 8)
        apply_optimizer_in_backward(RowWiseAdagrad, self.tables.parameters(), {"lr": 0.1})


def planned(*overrides: str, cluster: str = "8xh100", model: nn.Module | None = None, **more):
    config = load_config(PlannerConfig, find_config("launch/planners", cluster), overrides)
    return make_plan(
        model or OneTable(),
        config,
        requests_per_rank=16,
        pooling_factors={"history": 100.0, "candidate": 10.0},
        **more,
    )


def item(plan):
    return plan.modules["tables"]["item"]


def test_tokens_of_one_feature_are_overridden() -> None:
    plan = planned("tables.item.pooling_factor={history=1000.0}")
    assert item(plan).pooling_factors == [1000.0, 10.0]
    with pytest.raises(UserError, match=r"feature 'histroy', .* did you mean 'history'"):
        planned("tables.item.pooling_factor={histroy=1000.0}")


def test_a_table_can_be_looked_up_by_fewer_requests() -> None:
    few, all_ = planned(GPU, "tables.item.requests_per_rank=4"), planned(GPU)
    assert max(rank_ms(few)) == pytest.approx(max(rank_ms(all_)) / 4, rel=1e-6)
    buffers = [
        item(plan).shards[0].hbm_bytes
        - item(plan).shards[0].weight_bytes
        - item(plan).shards[0].state_bytes
        for plan in (few, all_)
    ]
    assert buffers[0] == pytest.approx(buffers[1] / 4, rel=0.01)


def test_cache_keys_reach_torchrec() -> None:
    plan = planned(
        'defaults.compute_kernels=["fused_uvm_caching"]',
        "defaults.cache_load_factor=0.1",
        'defaults.cache_algorithm="lfu"',
        'defaults.cache_precision="fp16"',
        "defaults.cache_reserved_gib=2",
        "defaults.stochastic_rounding=false",
    )
    sharding = plan.to_torchrec().plan["tables"]["item"]
    cache = sharding.cache_params
    assert (cache.load_factor, cache.algorithm.name) == (0.1, "LFU")
    assert cache.precision is DataType.FP16
    assert cache.reserved_memory == 2 * GIB
    assert sharding.stochastic_rounding is False
    assert sharding.enforce_hbm is None


def test_enforced_device_memory_is_counted_there() -> None:
    uvm = 'defaults.compute_kernels=["fused_uvm"]'
    apart, forced = planned(GPU, uvm), planned(GPU, uvm, "defaults.enforce_hbm=true")
    assert sum(rank_bytes(apart, "ddr")) >= ROWS * 64 * 4
    assert sum(rank_bytes(forced, "ddr")) == 0
    together = [
        sum(rank_bytes(plan, "hbm")) + sum(rank_bytes(plan, "ddr")) for plan in (apart, forced)
    ]
    assert together[0] == together[1]
    assert forced.to_torchrec().plan["tables"]["item"].enforce_hbm


@pytest.mark.parametrize("dtype", [DataType.FP32, DataType.FP16])
@pytest.mark.parametrize(("kind", "shards"), [("row_wise", 8), ("column_wise", 4)])
def test_state_of_every_shard_is_counted(dtype: DataType, kind: str, shards: int) -> None:
    """Row-wise Adagrad keeps four bytes a row and column shard, whatever the rows' type."""
    rules = (f'defaults.sharding_types=["{kind}"]', "defaults.min_partition=16")
    plan = planned(*rules, model=OneTable(dtype))
    model = OneTable(dtype)
    del model.tables.embeddings["item"].weight._optimizer_classes
    frozen = planned(*rules, model=model)
    found = item(plan).shards
    assert len(found) == shards
    per_shard = 4 * (ROWS // 8 if kind == "row_wise" else ROWS)
    for shard, without in zip(found, item(frozen).shards, strict=True):
        assert shard.state_bytes == per_shard
        assert shard.hbm_bytes - without.hbm_bytes == per_shard
        width = 4 if dtype is DataType.FP32 else 2
        assert shard.weight_bytes == shard.size[0] * shard.size[1] * width


@pytest.mark.parametrize("name", ["grid_search", "greedy", "greedy_sum", "uniform"])
def test_every_proposer_finds_a_plan(name: str) -> None:
    assert item(planned(f'search.proposers=["{name}"]')).shards


def test_dynamic_programming_finds_a_plan() -> None:
    plan = planned('search.proposers=["dynamic_programming"]', "search.hbm_bins=20")
    assert sum(shard.weight_bytes for shard in item(plan).shards) == ROWS * 64 * 4


def test_a_cache_grows_into_the_memory_that_is_left() -> None:
    kernel = ('defaults.compute_kernels=["fused_uvm_caching"]', GPU)
    start = ("defaults.cache_load_factor=0.05", "defaults.cacheability=0.2")
    plan = planned(*kernel, *start, 'search.proposers=["scale_up"]')
    small = planned(*kernel, *start)
    assert item(small).cache.load_factor == 0.05
    grown = item(plan)
    if grown.compute_kernel == "fused_uvm_caching":
        assert grown.cache.load_factor > 0.05
    assert max(rank_bytes(plan, "hbm")) > max(rank_bytes(small, "hbm"))


def test_popular_rows_miss_less() -> None:
    even, few = PopularRows(0.5, 10.0), PopularRows(0.1, 10.0)
    for rows in (even, few):
        assert rows.expected_miss_rate(0.0) == 1.0
        assert rows.expected_miss_rate(1.0) == 0.0
        share = torch.linspace(0, 1, 10_001)
        area = torch.tensor([rows.expected_miss_rate(float(c)) for c in share]).mean()
        assert float(area) == pytest.approx(rows.cacheability, abs=1e-3)
    assert few.expected_miss_rate(0.3) < even.expected_miss_rate(0.3) == pytest.approx(0.7)


def test_memory_is_balanced_or_kept_low() -> None:
    plan = planned('search.partitioner="memory_balanced"', 'search.best="hbm"')
    assert max(rank_bytes(plan, "hbm")) <= max(rank_bytes(planned(), "hbm"))


def test_estimates_follow_their_keys() -> None:
    base, slow = planned(GPU), planned(GPU, "estimates.backward_multiplier=4")
    first, other = (item(plan).shards[0] for plan in (base, slow))
    assert other.lookup_ms == first.lookup_ms
    assert other.update_ms > 1.5 * first.update_ms
    none = item(planned(GPU, "estimates.at_peak=false")).shards[0]
    assert none.hbm_bytes < first.hbm_bytes
    prefetch = item(planned(GPU, 'estimates.pipeline="prefetch_sparse_dist"')).shards[0]
    assert prefetch.hbm_bytes > first.hbm_bytes


class Slower(EmbeddingPerfEstimatorConfig):
    """Coefficients of another machine: twice the time of a lookup."""

    coefficients = PerfCoefficientConfig(
        **{
            kind: SimpleNamespace(
                fwd=SimpleNamespace(
                    input_read_size_multiplier=2.0,
                    lookup_size_multiplier=2.0,
                    embedding_output_multiplier=2.0,
                    hash_size_multiplier=0.0,
                ),
                bwd=None,
            )
            for kind in ("table_wise", "column_wise", "row_wise", "table_row_wise", "data_parallel")
        }
    )


def test_an_estimator_of_ones_own() -> None:
    own = planned(GPU, f'estimates.performance="{__name__}:Slower"')
    assert item(own).shards[0].lookup_ms == pytest.approx(
        2 * item(planned(GPU)).shards[0].lookup_ms
    )
    for name, message in (
        ("defautl_estimator", "did you mean 'default_estimator'"),
        ("nowhere:Slower", "No module named 'nowhere'"),
        ("pathlib:Path", "no subclass of TorchRec's HardwarePerfConfig"),
    ):
        with pytest.raises(UserError, match=message):
            planned(f'estimates.performance="{name}"')


def test_hosts_of_other_sizes() -> None:
    """Row-wise shards are equal and must fit the smallest; whole tables go where there is room."""
    hosts = ("topology.hosts=2", "topology.devices_per_host=1")
    fits = "topology.other_hosts=[{hosts = [0], hbm_gib = 3}]"
    rows = [shard.size[0] for shard in item(planned(GPU, *hosts, fits)).shards]
    assert rows == [ROWS // 2] * 2
    fused = 'defaults.compute_kernels=["fused"]'
    less = "topology.other_hosts=[{hosts = [0], hbm_gib = 1}]"
    with pytest.raises(UserError, match="no sharding plan"):
        planned(GPU, *hosts, less, fused)
    whole = planned('defaults.sharding_types=["table_wise"]', *hosts, less, fused)
    assert item(whole).ranks == [1]


def test_what_is_not_a_table_takes_memory_away() -> None:
    large = Footprint(dense=10 * GIB, batches=10 * GIB, activations=43 * GIB)
    plan = planned(footprint=large)
    assert plan.footprint == large
    with pytest.raises(UserError, match=r"no sharding plan: .*dense part 64\.0 GiB, batches 0 B"):
        planned(footprint=Footprint(dense=64 * GIB))


def test_dense_bytes_leave_the_tables_out() -> None:
    model = OneTable()
    model.register_buffer("code_words", torch.zeros(100, dtype=torch.float16))
    assert dense_bytes(model) == 4 * 4 * (64 * 8 + 8) + 200


class OneBag(nn.Module):
    """A table that is summed where its rows are."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name="item", num_embeddings=ROWS, embedding_dim=64, feature_names=["history"]
                )
            ],
            device=torch.device("meta"),
        )


@pytest.mark.parametrize(
    ("kind", "shards"), [("table_row_wise", 4), ("table_column_wise", 2), ("grid_shard", 8)]
)
def test_tables_over_hosts(kind: str, shards: int) -> None:
    hosts = ("topology.hosts=4", "topology.devices_per_host=4", "defaults.min_partition=32")
    plan = planned(f'defaults.sharding_types=["{kind}"]', *hosts, model=OneBag())
    table = plan.modules["bags"]["item"]
    assert table.sharding_type == kind
    assert len(table.shards) == shards
    ranks_of = {}
    for shard in table.shards:
        ranks_of.setdefault(shard.offset[1], set()).add(shard.rank // 4)
    if kind == "table_column_wise":
        assert len(set.union(*ranks_of.values())) == 1
    else:  # the rows of a column block lie on one host
        assert all(len(found) == 1 for found in ranks_of.values())
        assert len(set.union(*ranks_of.values())) == shards // 4
        with pytest.raises(UserError, match=f"'item' is {kind} over hosts of 4 .* has 8 on a host"):
            check_hosts(plan, 8)
    check_hosts(plan, 4)
