from __future__ import annotations

import pytest

from hisac_rec.config import load_config, validate
from hisac_rec.errors import UserError
from hisac_rec.planning.config import PlannerConfig, TableConstraints, TopologyConfig
from hisac_rec.shipped import find_config, shipped_names

CPU = {"topology": {"device": "cpu", "ddr_gib": 8}}


@pytest.mark.parametrize(
    ("name", "world_size"),
    [("1xcpu", 1), ("2xcpu", 2), ("1xh100", 1), ("8xh100", 8), ("16xh100", 16), ("128xh100", 128)],
)
def test_shipped_files_are_what_their_names_say(name, world_size):
    config = load_config(PlannerConfig, find_config("launch/planners", name))
    assert config.topology.world_size == world_size
    assert config.topology.device == ("cpu" if name.endswith("cpu") else "cuda")
    assert name in shipped_names("launch/planners")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"defaults": {"sharding_types": ["rowwise"]}},
            r"key 'defaults.sharding_types' = \['rowwise'\]: unknown sharding type 'rowwise'; "
            r"did you mean 'row_wise'\?",
        ),
        (
            {"tables": {"item*": {"compute_kernels": ["fused_umv"]}}},
            r"tables\.item\*\.compute_kernels.*unknown compute kernel 'fused_umv'; "
            r"did you mean 'fused_uvm'\?",
        ),
        ({"defaults": {"sharding_types": []}}, "names no sharding type; leave the key out"),
        ({"defaults": {"min_partition": 6}}, "multiple of 4"),
        ({"defaults": {"cache_load_factor": 1.5}}, "less than 1"),
        ({"reserve": {"percentage": 100}}, "less than 100"),
        ({"topology": {"device": "cpu", "hosts": 0}}, "greater than 0"),
        ({"topology": {"device": "gpu"}}, "'cpu' or 'cuda'"),
        ({"topology": {"device": "cuda", "ddr_gib": 8}}, "hbm_gib is required where device"),
        ({"topology": {"device": "cpu", "hbm_gib": 8}}, "hbm_gib must be left out"),
        (
            {"search": {"proposers": ["greedi"]}},
            r"key 'search.proposers' = \['greedi'\]: unknown proposer 'greedi'; "
            r"did you mean 'greedy'\?",
        ),
        (
            {"topology": {"device": "cpu", "hosts": 2, "devices_per_host": 4, "sharding_group": 3}},
            r"sharding_group = 3: .* with 2 x 4 ranks the nearest is 2",
        ),
        ({"topology": {"device": "cpu", "sync_every": 2}}, "of use only with a sharding_group"),
        ({"search": {"proposers": []}}, "names no proposer; leave the key out"),
        ({"search": {"proposers": ["dynamic_programming"]}}, "on device = 'cpu' use greedy"),
        ({"search": {"best": "hbm"}}, "leave them out where device = 'cpu'"),
        ({"estimates": {"pipeline": "sparse"}}, "'none', 'sparse_dist' or 'prefetch_sparse_dist'"),
        ({"defaults": {"cache_algorithm": "LRU"}}, "'lru' or 'lfu'"),
        ({"defaults": {"cacheability": 0.7}}, "less than or equal to 0.5"),
        ({"reserve": {"batches": -1}}, "greater than or equal to 0"),
        (
            {"topology": {"device": "cpu", "other_hosts": [{"hosts": [1], "ddr_gib": 4}]}},
            "other_hosts names host 1; there are hosts 0 to 0",
        ),
        (
            {"topology": {"device": "cpu", "other_hosts": [{"hosts": [0, 0], "ddr_gib": 4}]}},
            "names host 0 more than once",
        ),
        (
            {"topology": {"device": "cpu", "other_hosts": [{"hosts": [0], "hbm_gib": 4}]}},
            "other_hosts.hbm_gib must be left out where device = 'cpu'",
        ),
        (
            {"topology": {"device": "cpu", "other_hosts": [{"hosts": [0], "dd_gib": 4}]}},
            r"unknown key 'topology.other_hosts.0.dd_gib'; did you mean 'ddr_gib'\?",
        ),
        ({"topolgy": {}}, r"unknown key 'topolgy'; did you mean 'topology'\?"),
        (
            {"tables": {"item": {"sharding_type": ["row_wise"]}}},
            r"unknown key 'tables\.item\.sharding_type'; did you mean 'sharding_types'\?",
        ),
    ],
)
def test_mistakes_are_named_with_the_nearest_valid_value(raw, message):
    with pytest.raises(UserError, match=message):
        validate(PlannerConfig, CPU | raw, "my.toml")


def test_later_patterns_win_key_by_key():
    config = validate(
        PlannerConfig,
        CPU
        | {
            "defaults": {"sharding_types": ["row_wise"], "min_partition": 8},
            "tables": {
                "item*": {"sharding_types": ["table_wise"], "pooling_factor": 5},
                "item_tag": {"pooling_factor": 7},
            },
        },
        "my.toml",
    )
    assert config.constraints_of("user") == TableConstraints(
        sharding_types=["row_wise"], min_partition=8
    )
    assert config.constraints_of("item") == TableConstraints(
        sharding_types=["table_wise"], min_partition=8, pooling_factor=5
    )
    assert config.constraints_of("item_tag") == TableConstraints(
        sharding_types=["table_wise"], min_partition=8, pooling_factor=7
    )


def test_patterns_are_checked_against_the_tables():
    config = PlannerConfig(
        topology=TopologyConfig(device="cpu"), tables={"itme*": TableConstraints()}
    )
    config_ok = config.model_copy(update={"tables": {"item*": TableConstraints()}})
    config_ok.check_patterns(["item", "user"])
    with pytest.raises(UserError, match=r'"itme\*"\] matches no table .* did you mean \'item\''):
        config.check_patterns(["item", "user"])
