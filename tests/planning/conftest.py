"""The small model of ``small_model.py``, and a way to plan it."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hisac_rec.config import load_config
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.planning.plan_io import Plan
from hisac_rec.planning.planner import make_plan
from hisac_rec.shipped import find_config

SCRIPT = Path(__file__).with_name("small_model.py")


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """The names of ``small_model.py``."""
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="session")
def script() -> Path:
    return SCRIPT


@pytest.fixture(scope="session")
def planner_config() -> Callable[..., PlannerConfig]:
    """A shipped planner config by name, with ``--set`` overrides."""

    def load(name: str, *overrides: str) -> PlannerConfig:
        return load_config(PlannerConfig, find_config("launch/planners", name), overrides)

    return load


@pytest.fixture(scope="session")
def plan_small(small: dict[str, Any], planner_config: Callable[..., PlannerConfig]):
    """Plan the small model: ``plan_small("2xcpu", "defaults.min_partition=8")``."""

    def plan(name: str, *overrides: str, **model: Any) -> Plan:
        return make_plan(
            small["SmallModel"](**({"device": "meta"} | model)),
            planner_config(name, *overrides),
            requests_per_rank=4,
            pooling_factors=small["POOLING"],
        )

    return plan
