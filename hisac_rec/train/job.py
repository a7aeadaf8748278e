"""What training and evaluation share: data, model file, plan and the sharded model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from hisac_rec.data.contract import PreparedData
from hisac_rec.data.inputs import InputSpec, Lookup
from hisac_rec.data.items import ItemStore, load_items
from hisac_rec.data.loader import LARGEST, RequestBatches, resolve_loader
from hisac_rec.planning.check import check_hosts, check_plan
from hisac_rec.planning.config import PlannerConfig, TopologyConfig
from hisac_rec.planning.plan_io import Plan, load_plan
from hisac_rec.planning.planner import default_sharders, make_plan
from hisac_rec.ranker.build import RankerSchema, build_ranker, optional_semantics, ranker_schema
from hisac_rec.ranker.config import ModelConfig
from hisac_rec.ranker.ranker import Ranker
from hisac_rec.semantic.store import Semantics
from hisac_rec.semantic.views import views_of_users
from hisac_rec.train.distributed import Ranks
from hisac_rec.train.footprint import footprint_of
from hisac_rec.train.kernels import compare_with_plan
from hisac_rec.train.optim import attach_sparse_optimizer
from hisac_rec.train.pooling import decide_pool
from hisac_rec.train.replicas import ReplicatedModelParallel
from hisac_rec.train.tables import fill_tables

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BagTraffic:
    """What a mean request asks of the tables that are read by bags.

    Args:
        bags: bags, the same for every such table.
        ids: table -> ids in them.
    """

    bags: float
    ids: dict[str, float]


@dataclass(frozen=True)
class Job:
    """A model file resolved against a data set."""

    config: ModelConfig
    data: PreparedData
    semantics: Semantics | None
    schema: RankerSchema
    items: ItemStore

    @property
    def spec(self) -> InputSpec:
        """Lookups of the model."""
        return self.schema.spec

    def unsharded(self) -> Ranker:
        """The ranker with its tables on the meta device and its optimiser attached."""
        torch.manual_seed(self.config.train.seed)
        ranker = build_ranker(self.config, self.schema, "meta")
        # The dense part is real: only tables are too large to be built before sharding.
        for tables in ranker.trained_collections():
            attach_sparse_optimizer(tables, self.config.train, candidates_per_step(self))
        return ranker

    def plan(self, planner: PlannerConfig, requests: int, model: Ranker | None = None) -> Plan:
        """A sharding plan, with the mean ids per request measured on the training split.

        Args:
            planner: the cluster and its rules.
            requests: of a rank's batch.
            model: :meth:`unsharded`, where it is at hand.

        Raises:
            UserError: see :func:`~hisac_rec.planning.planner.make_plan`.
        """
        traffic = self.bag_traffic()
        model = self.unsharded() if model is None else model
        events, candidates = history_mean(self.spec, self.data), self.data.stats.candidates_mean
        return make_plan(
            model,
            planner,
            footprint=footprint_of(self, model, planner, events, candidates),
            requests_per_rank=requests,
            pooling_factors=pooling_factors(self.spec, self.data, requests) | traffic.ids,
            bags_per_request=traffic.bags,
        )

    def bag_traffic(self) -> BagTraffic:
        """How much is read by bags, measured on the first batch of the training split.

        Where the data is planned for as if histories were longer, ids grow with them and bags
        do not: a longer history meets the leaves that it has met before.
        """
        if not self.spec.pooled():
            return BagTraffic(1.0, {})
        batches = RequestBatches(self.data, "train", self.spec, self.items, self.config.loader)
        batch = next(iter(batches))
        requests = batch.num_requests
        longer = history_mean(self.spec, self.data) * requests / max(1, batch.num_events)
        keys, ids = batch.bags.keys(), batch.bags.length_per_key()
        return BagTraffic(
            batch.bags.stride() / requests,
            {key: max(1, longer) * n / requests for key, n in zip(keys, ids, strict=True)},
        )


def open_job(config: ModelConfig, data: PreparedData) -> Job:
    """Resolve a model file against a data set.

    Raises:
        UserError: the data lacks what the model asks for.
    """
    semantics = optional_semantics(data)
    loader = resolve_loader(config.loader, data.manifest.splits["train"].candidates)
    config = config.model_copy(update={"loader": loader})
    schema = ranker_schema(config, data, semantics)
    codes = semantics.codes if semantics else None
    known = semantics.known if semantics else None
    views = views_of_users(data, semantics.views) if semantics and semantics.views > 1 else None
    items = load_items(data, schema.spec, codes, known, views)
    config, schema = decide_pool(config, schema, data, semantics, items)
    if config.tables.pool and not schema.spec.pooled():
        log.warning(
            "tables.pool = true changes nothing: no table that events read has "
            "tables.pool_min_rows = %s rows",
            f"{config.tables.pool_min_rows:,}",
        )
    return Job(config, data, semantics, schema, items)


def history_mean(spec: InputSpec, data: PreparedData) -> float:
    """Mean events of a request's history, as far as the model reads it."""
    mean = data.stats.history_length_mean
    return mean if spec.max_history is None else min(mean, float(spec.max_history))


def pooling_factors(spec: InputSpec, data: PreparedData, requests: int) -> dict[str, float]:
    """Lookup key -> mean ids per request, from the data set's stats.

    Upper bounds: a batch looks up each id of a key once, so never more than the table has rows,
    but how often requests share an id beyond that depends on the batch.

    Args:
        spec: the model's lookups.
        data: their stats.
        requests: of a rank's batch.
    """
    stats = data.stats
    history = history_mean(spec, data)
    per_request = {"user": 1.0, "history": history, "candidate": stats.candidates_mean}
    factors = {}
    for lookup in spec.lookups:
        values = stats.feature_values_mean.get(lookup.column if lookup.multi else "", 1.0)
        hashes = lookup.vocabulary.hashes if lookup.vocabulary else 1
        factors[lookup.key] = min(
            per_request[lookup.side] * values * hashes, _most_asked(lookup) / requests
        )
    for side in spec.vector_sides:
        factors[f"{side}.vector"] = min(per_request[side], spec.coded / requests)
    return factors


def _most_asked(lookup: Lookup) -> int:
    """Different ids that a batch can ask a table for, at most."""
    return lookup.ids if lookup.managed else lookup.rows


def resolve_plan(job: Job, ranks: Ranks, source: Path | PlannerConfig | None) -> Plan:
    """The sharding plan to run: a saved one, or one made now.

    Args:
        job: what is to be sharded.
        ranks: this process.
        source: a saved plan (JSON), a planner config, or None for this machine's devices.

    Raises:
        UserError: the plan is for another model or world size, or does not fit.
    """
    model = job.unsharded()
    if isinstance(source, Path):
        plan = load_plan(source)
        check_plan(plan, model, world_size=ranks.world_size, source=str(source))
        check_hosts(plan, ranks.per_host, str(source))
        return plan
    planner = source or this_machine(ranks)
    # Planning is deterministic, so every rank plans: a refusal reaches all of them at once,
    # where a broadcast would leave the others waiting for a rank 0 that has failed.
    requests = requests_per_rank(job, planner.topology.world_size)
    plan = job.plan(planner, requests, model)
    check_plan(plan, model, world_size=ranks.world_size, source="planner config")
    check_hosts(plan, ranks.per_host, "planner config")
    return plan


def candidates_per_step(job: Job) -> float:
    """Candidates of a mean step over all ranks, as the loader's budgets give it."""
    return requests_per_rank(job, 1) * job.data.stats.candidates_mean


def requests_per_rank(job: Job, world_size: int) -> int:
    """Requests of a mean batch on one rank, as the loader's budgets give it."""
    loader, stats = job.config.loader, job.data.stats
    tokens = history_mean(job.spec, job.data) + loader.candidate_cost * stats.candidates_mean
    by_tokens = loader.batch_tokens / max(1.0, tokens)
    by_candidates = (loader.max_candidates or LARGEST) / max(1.0, stats.candidates_mean)
    return max(1, round(min(by_tokens, by_candidates) / world_size))


def this_machine(ranks: Ranks) -> PlannerConfig:
    """A planner config for the ranks that are there, with the memory that is there."""
    hbm = 0.0
    if ranks.device.type == "cuda":
        hbm = torch.cuda.get_device_properties(ranks.device).total_memory / 2**30
    return PlannerConfig(
        topology=TopologyConfig(
            hosts=ranks.world_size // ranks.per_host,
            devices_per_host=ranks.per_host,
            device="cuda" if hbm else "cpu",
            hbm_gib=hbm,
            ddr_gib=psutil.virtual_memory().total / 2**30,
        )
    )


def shard(job: Job, plan: Plan, ranks: Ranks) -> DistributedModelParallel:
    """Shard the model by the plan and give it its initial weights."""
    sharders = default_sharders(job.config.train.communication, ranks.device)
    model: DistributedModelParallel
    if plan.planner.topology.replicas > 1:
        model = ReplicatedModelParallel(
            job.unsharded(), device=ranks.device, plan=plan, sharders=sharders
        )
    else:
        model = DistributedModelParallel(
            job.unsharded(), device=ranks.device, plan=plan.to_torchrec(), sharders=sharders
        )
    with torch.no_grad():
        fill_tables(
            model.state_dict(),
            seed=job.config.train.seed,
            scale=job.config.tables.init_scale,
            vectors=job.semantics.vectors if job.semantics else None,
        )
    compare_with_plan(plan, model, ranks)
    return model
