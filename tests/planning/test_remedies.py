"""Each change that a refusal proposes is enough, and a smaller one is not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from hisac_rec.config import apply_overrides, validate
from hisac_rec.errors import UserError
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.planning.footprint import Footprint
from hisac_rec.planning.planner import make_plan
from hisac_rec.planning.remedies import Attempt, find_remedies, grown, least

GIB = 2**30
CLUSTER = {
    "topology": {"hosts": 1, "devices_per_host": 2, "hbm_gib": 20, "ddr_gib": 400},
    "reserve": {"percentage": 20},
    "defaults": {"compute_kernels": ["fused"]},
}


class Tables(nn.Module):
    """34 GiB of items and 1 GiB of users, frozen."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"item": 34 * GIB // 256, "user": GIB // 256}
        self.tables = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=name,
                    num_embeddings=rows,
                    embedding_dim=64,
                    feature_names=["history.item" if name == "item" else "user"],
                )
                for name, rows in sizes.items()
            ],
            device=torch.device("meta"),
        )


def footprint(requests: int, history: float) -> Footprint:
    return Footprint(activations=int(requests * history * GIB / 32))


def plan(*overrides: str, requests: int = 32, history: float = 1.0):
    return make_plan(
        Tables(),
        validate(PlannerConfig, apply_overrides(CLUSTER, overrides), "test"),
        requests_per_rank=requests,
        pooling_factors={"history.item": 1000.0 * history, "user": 1.0},
        footprint=lambda own, share: footprint(own, share * history),
    )


@pytest.fixture(scope="module")
def remedies() -> dict[str, str]:
    """Key -> proposed value."""
    with pytest.raises(UserError) as error:
        plan()
    message = str(error.value)
    _, _, lines = message.partition("(each was planned with):\n")
    assert "less 20 % reserve and 1.0 GiB for what is no table" in message
    found = {}
    for line in lines.splitlines():
        if (number := re.match(r"  (\S+) = (\d+) \(now", line)) is not None:
            found[number[1]] = number[2]
        else:
            found[re.findall(r"compute_kernels|requests per rank|histories|sharding", line)[0]] = (
                line
            )
    return found


@pytest.mark.parametrize(
    ("key", "smaller"),
    [("topology.hosts", -1), ("topology.hbm_gib", -1), ("reserve.percentage", 1)],
)
def test_a_number_is_enough_and_the_one_before_it_is_not(remedies, key, smaller) -> None:
    value = int(remedies[key])
    plan(f"{key}={value}")
    with pytest.raises(UserError, match="no sharding plan"):
        plan(f"{key}={value + smaller}")


def test_one_table_in_main_memory_is_enough(remedies) -> None:
    line = remedies["compute_kernels"]
    assert "tables.item.compute_kernels = ['fused', 'fused_uvm_caching']" in line
    assert "tables.user" not in line
    assert plan(line.strip().split(":")[0]).modules["tables"]["user"].compute_kernel == "fused"


def test_what_does_not_help_is_not_proposed(remedies) -> None:
    """The weights alone are too large: no number of requests is small enough."""
    assert "requests per rank" not in remedies
    assert "histories" not in remedies
    assert "sharding" not in remedies


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("requests", r"  (\d+) requests per rank \(now 200"),
        ("history", r"  histories of (\d+) % of"),
    ],
)
def test_smaller_steps_are_enough_where_buffers_are_too_large(what: str, pattern: str) -> None:
    enough = "topology.hbm_gib=25"
    with pytest.raises(UserError) as error:
        plan(enough, requests=200)
    found = re.search(pattern, str(error.value))
    assert found is not None, str(error.value)
    left = int(found[1])
    sizes = [left, left + 1]
    asked = [
        {"requests": size} if what == "requests" else {"requests": 200, "history": size / 100}
        for size in sizes
    ]
    plan(enough, **asked[0])
    with pytest.raises(UserError, match="no sharding plan"):
        plan(enough, **asked[1])


@given(st.integers(1, 500), st.integers(1, 500))
def test_the_least_number_is_found(start: int, more: int) -> None:
    wanted = start + more
    assert grown(start, 2000, lambda n: n >= wanted) == wanted
    assert least(start, 2000, lambda n: n >= wanted) == wanted
    assert grown(start, wanted - 1, lambda n: n >= wanted) is None


def test_the_search_ends_in_time() -> None:
    config = validate(PlannerConfig, CLUSTER, "test")
    asked: list[Attempt] = []

    def never(attempt: Attempt) -> bool:
        asked.append(attempt)
        return False

    assert find_remedies(Attempt(config, 8), [], never, seconds=-1.0) == []
    assert not asked
    assert find_remedies(replace(Attempt(config, 8)), [], never) == []
    assert 0 < len(asked) < 60
