"""Sharding plans by TorchRec's planner, fed with what its defaults get wrong.

TorchRec assumes one token per feature, 512 samples a step and GPUs of 32 GiB. A history of
10,000 events is four orders of magnitude away from that, so the planner here always gets
measured mean lengths, the real batch size and the real cluster. No GPU, process group or
weight is needed: a model on the meta device is planned for any cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    ParameterConstraints,
    PlannerError,
    ShardingOption,
    Topology,
)
from torchrec.distributed.types import ModuleSharder, ShardingPlan

from hisac_rec.errors import UserError
from hisac_rec.managed.sharding import ManagedSharder
from hisac_rec.planning.algorithms import make_partitioner, make_proposers, make_rating
from hisac_rec.planning.body import plan_body
from hisac_rec.planning.check import check_plan
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.planning.constraints import Sharders, constraints_of
from hisac_rec.planning.estimators import OrderedEnumerator, make_enumerator
from hisac_rec.planning.footprint import NOTHING, Footprint, FootprintOf
from hisac_rec.planning.infeasible import explain_infeasible
from hisac_rec.planning.model_tables import ModelTable, model_tables, tables_digest
from hisac_rec.planning.plan_io import Plan
from hisac_rec.planning.remedies import Attempt, find_remedies
from hisac_rec.planning.topology import make_topology

log = logging.getLogger(__name__)

HISTORY = "history"
"""How the names of features begin whose tokens grow with the length of histories."""


def default_sharders(
    communication: str = "fp32", device: torch.device | None = None
) -> list[ModuleSharder[nn.Module]]:
    """Sharders of every kind of embedding collection, without fused parameters.

    Args:
        communication: what rows and gradients travel as: "fp32", "fp16" or "bf16".
        device: where the ranks compute; what cannot send bf16 sends fp16.
    """
    precision = CommType(communication)
    codecs = get_qcomm_codecs_registry(
        QCommsConfig(forward_precision=precision, backward_precision=precision), device=device
    )
    return [
        EmbeddingCollectionSharder(qcomm_codecs_registry=codecs),
        EmbeddingBagCollectionSharder(qcomm_codecs_registry=codecs),
        ManagedSharder(qcomm_codecs_registry=codecs),
    ]


def make_plan(
    model: nn.Module,
    config: PlannerConfig,
    *,
    requests_per_rank: int,
    pooling_factors: Mapping[str, float],
    bags_per_request: float = 1.0,
    footprint: Footprint | FootprintOf = NOTHING,
    sharders: Sharders | None = None,
) -> Plan:
    """Plan where every embedding table of ``model`` goes.

    Pure: the same arguments give the same plan in every process, so each rank may call it.
    Optimiser state is counted for the parameters that were given a fused optimiser by
    ``apply_optimizer_in_backward``; a frozen table has none and none is counted.

    Args:
        model: the unsharded model, on any device, the meta device included.
        config: the cluster and the rules.
        requests_per_rank: batch size B of one rank, in requests.
        pooling_factors: feature name -> mean tokens per request: mean history length for
            history features, mean candidates for candidate features, 1 for user features;
            or table name -> the sum over its features, where none is named like the table.
        bags_per_request: sums that a request asks of each table of an EmbeddingBagCollection.
        footprint: what every rank holds on its device besides tables, or how it follows from
            the requests of a rank and the share of the length of histories.
        sharders: TorchRec sharders of the job; None: :func:`default_sharders`.

    Returns:
        The plan; ``plan.to_torchrec()`` is what ``DistributedModelParallel`` takes.
        Cost O(proposals * shards): about a second for 128 ranks.

    Raises:
        UserError: a pattern matches no table, a rule leaves a table no way to be sharded, a
            pooling factor is missing, or the tables do not fit.
    """
    if requests_per_rank < 1:
        raise UserError(f"requests_per_rank = {requests_per_rank}: at least 1 is needed")
    sharders = default_sharders() if sharders is None else sharders
    tables = model_tables(model)
    if not tables:
        raise UserError("the model holds no embedding collection: there is nothing to shard")
    config.check_patterns(table.name for table in tables)
    problem = _Problem(model, tables, pooling_factors, bags_per_request, footprint, sharders)
    now = Attempt(config, requests_per_rank)
    try:
        found = problem.solve(now)
    except PlannerError as error:
        log.debug("TorchRec's planner: %s", error)
        options = problem.options(now)
        remedies = find_remedies(now, options, problem.is_feasible)
        raise UserError(
            explain_infeasible(options, config, problem.footprint(now), remedies)
        ) from None
    plan = Plan(
        digest=tables_digest(tables),
        requests_per_rank=requests_per_rank,
        planner=config,
        footprint=problem.footprint(now),
        modules=plan_body(tables, found.options, found.constraints, found.sharding),
    )
    check_plan(plan, model)
    if plan.to_torchrec() != found.sharding:
        raise RuntimeError("the plan does not convert back to TorchRec's: a defect, report it")
    return plan


@dataclass(frozen=True)
class _Found:
    """What TorchRec's planner found."""

    sharding: ShardingPlan
    options: list[ShardingOption]
    constraints: dict[str, ParameterConstraints]


@dataclass(frozen=True)
class _Problem:
    """A model and what a request asks of it; see :func:`make_plan`."""

    model: nn.Module
    tables: list[ModelTable]
    pooling_factors: Mapping[str, float]
    bags: float
    counted: Footprint | FootprintOf
    sharders: Sharders

    def footprint(self, attempt: Attempt) -> Footprint:
        """What a rank holds besides tables."""
        if isinstance(self.counted, Footprint):
            return self.counted
        return self.counted(attempt.requests, attempt.history)

    def solve(self, attempt: Attempt) -> _Found:
        """Plan.

        Raises:
            PlannerError: nothing fits.
            UserError: see :func:`make_plan`.
        """
        config = attempt.config
        topology, constraints, enumerator = self._prepare(attempt)
        chosen: list[ShardingOption] = []

        def keep(options: list[ShardingOption]) -> list[ShardingOption]:
            chosen.extend(options)
            return options

        planner = EmbeddingShardingPlanner(
            topology=topology,
            batch_size=attempt.requests,
            enumerator=enumerator,
            constraints=constraints,
            # The topology is already without the reserve: TorchRec's own reserves HBM alone.
            storage_reservation=FixedPercentageStorageReservation(0.0),
            proposer=make_proposers(config.search),
            partitioner=make_partitioner(config.search),
            performance_model=make_rating(config.search, topology),
            stats=[],
            callbacks=[keep],
        )
        sharding = planner.plan(self.model, list(self.sharders))
        for table in (one for module in sharding.plan.values() for one in module.values()):
            if table.cache_params is not None:  # what plans are made from, not what they are
                table.cache_params = replace(table.cache_params, stats=None)
        return _Found(sharding, chosen, constraints)

    def options(self, attempt: Attempt) -> list[ShardingOption]:
        """Every way to shard every table."""
        return self._prepare(attempt)[2].enumerate(self.model, list(self.sharders))

    def is_feasible(self, attempt: Attempt) -> bool:
        """Whether there is a plan; looked for by the proposers that need least time."""
        search = attempt.config.search
        quick = [name for name in ("uniform", "greedy") if name in search.proposers]
        search = search.model_copy(update={"proposers": quick or search.proposers})
        config = attempt.config.model_copy(update={"search": search})
        try:
            self.solve(replace(attempt, config=config))
        except (PlannerError, UserError):
            return False
        return True

    def _prepare(
        self, attempt: Attempt
    ) -> tuple[Topology, dict[str, ParameterConstraints], OrderedEnumerator]:
        config, requests = attempt.config, attempt.requests
        tokens = {
            key: count * (attempt.history if key.startswith(HISTORY) else 1.0)
            for key, count in self.pooling_factors.items()
        }
        constraints = {
            table.name: constraints_of(table, config, tokens, self.bags, requests, self.sharders)
            for table in self.tables
        }
        topology = make_topology(config, self.footprint(attempt))
        enumerator = make_enumerator(topology, requests, constraints, config.estimates)
        return topology, constraints, enumerator
