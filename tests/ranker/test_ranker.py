"""The unsharded ranker: loss, gradients, and what each part of a model file changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import random_rows, write_prepared
from torchrec.sparse.jagged_tensor import JaggedTensor
from training import small_config

from hisac_rec.data.assemble import BatchAssembler
from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.contract import PreparedData
from hisac_rec.data.loader import RequestBatches
from hisac_rec.errors import UserError
from hisac_rec.methods.base import Candidates, MethodShape
from hisac_rec.methods.mean import Method as Mean
from hisac_rec.ranker.arches import mlp
from hisac_rec.ranker.build import build_ranker, optional_semantics, ranker_schema
from hisac_rec.ranker.config import load_model_config
from hisac_rec.ranker.ranker import Ranker
from hisac_rec.ranker.sparse import EventEncoder, LookedUp
from hisac_rec.train.job import Job, open_job

METHODS = [
    (),
    ("history.semantics=vectors",),
    ('history={method="mean"}',),
    ('history={method="recent"}', "inputs.history=['*']"),
    ('history={method="none"}', "inputs.history=[]"),
]


def make(data: PreparedData, *overrides: str) -> tuple[Job, Ranker]:
    torch.manual_seed(0)
    job = open_job(small_config(*overrides), data)
    return job, build_ranker(job.config, job.schema)


def batches_of(job: Job) -> list[RequestBatch]:
    return list(RequestBatches(job.data, "train", job.spec, job.items, job.config.loader))


@pytest.mark.parametrize("overrides", METHODS, ids=str)
def test_loss_is_the_mean_cross_entropy(small_data: PreparedData, overrides: Any) -> None:
    job, ranker = make(small_data, *overrides)
    batch = batches_of(job)[0]
    loss, (detached, logits) = ranker(batch)
    assert logits.shape == batch.labels.shape
    share = logits.double().sigmoid()
    plain = -(batch.labels * share.log() + (1 - batch.labels) * (1 - share).log()).mean()
    assert float(loss) == pytest.approx(float(plain), rel=1e-5)
    assert loss.requires_grad
    assert not detached.requires_grad
    assert not logits.requires_grad


@pytest.mark.parametrize("overrides", METHODS, ids=str)
def test_gradients_reach_all_that_is_trained_and_nothing_frozen(
    small_data: PreparedData, overrides: Any
) -> None:
    job, ranker = make(small_data, *overrides)
    # A null slot of zeros passes no gradient to its key: a step away it does.
    for parameter in ranker.head.parameters():
        parameter.data += 0.01
    ranker(batches_of(job)[0])[0].backward()
    for name, parameter in ranker.named_parameters():
        if "semantic_vector" in name:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("overrides", METHODS, ids=str)
def test_requests_do_not_mix(small_data: PreparedData, overrides: Any) -> None:
    """A candidate's logit is the same in a batch of one request as among others."""
    job, ranker = make(small_data, *overrides)
    together = {}
    for batch in batches_of(job)[:2]:
        together |= by_candidate(batch, ranker(batch)[1][1])
    alone_job, _ = make(small_data, *overrides, "loader.batch_tokens=1")
    for batch in batches_of(alone_job)[:20]:
        for key, logit in by_candidate(batch, ranker(batch)[1][1]).items():
            assert together[key] == pytest.approx(logit, abs=1e-4)


def by_candidate(batch: RequestBatch, logits: torch.Tensor) -> dict[tuple[int, ...], float]:
    counts = batch.candidate_offsets.diff()
    rows = batch.request_rows.repeat_interleave(counts, 0).tolist()
    keys = zip(rows, batch.candidate_items.tolist(), strict=True)
    return {(*row, item): logit for (row, item), logit in zip(keys, logits.tolist(), strict=True)}


@pytest.mark.parametrize("overrides", METHODS, ids=str)
def test_the_batch_of_a_rank_that_has_run_out(small_data: PreparedData, overrides: Any) -> None:
    job, ranker = make(small_data, *overrides)
    batch = BatchAssembler(job.spec, job.items).empty()
    loss, (_, logits) = ranker(batch)
    assert float(loss) == 0
    assert logits.shape == (0,)
    loss.backward()
    for name, parameter in ranker.named_parameters():
        if "semantic_vector" not in name:
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


def test_a_method_that_skips_its_weights_without_events_hangs_nobody(
    small_data: PreparedData,
) -> None:
    """Other ranks wait for every gradient, so one of zero must come all the same."""
    job, ranker = make(small_data, 'history={method="mean"}')

    class Lazy(Mean):
        def read(self, memory: torch.Tensor, candidates: Candidates) -> torch.Tensor:
            if not len(candidates.request):
                return candidates.values.new_zeros((0, 1, self.dim))
            return self.scale(super().read(memory, candidates))

    method = Lazy(Mean.Config(), MethodShape(job.config.tables.dim, (), 0))
    method.scale = torch.nn.Linear(job.config.tables.dim, job.config.tables.dim)
    ranker.head.dense.method = method
    ranker(BatchAssembler(job.spec, job.items).empty())[0].backward()
    assert method.scale.weight.grad is not None
    assert not method.scale.weight.grad.any()


def test_loss_scale_scales(small_data: PreparedData) -> None:
    job, ranker = make(small_data)
    batch = batches_of(job)[0]
    once, twice = (ranker(batch.with_loss_scale(scale))[0] for scale in (0.01, 0.02))
    assert float(twice) == pytest.approx(2 * float(once))


def test_later_events_do_not_count(tmp_path: Path) -> None:
    """What lies beyond a request's history_end changes nothing it sees."""
    import numpy as np

    logits = []
    for later in (3, 4):
        rows = random_rows(np.random.default_rng(0), 4, 20)
        for row in rows:
            row["history_item"].append(later)
            row["history_type"].append(0)
            row["history_time"].append(2_000)
        data = write_prepared(tmp_path / str(later), items=20, rows={"train": rows})
        plain = ('inputs.history=["id"]', 'inputs.candidate=["id"]')
        job, ranker = make(data, 'history={method="mean"}', *plain)
        logits.append(torch.cat([ranker(batch)[1][1] for batch in batches_of(job)]))
    assert torch.equal(*logits)


def test_multi_valued_features_are_averaged(tmp_path: Path) -> None:
    from hisac_rec.data.contract import Feature
    from hisac_rec.ranker.sparse import LookedUp

    tags = [Feature(name="tags", rows=5, multi=True)]
    data = write_prepared(tmp_path, items=20, item_features=tags)
    job, ranker = make(
        data,
        'history={method="mean"}',
        'inputs.history=["id", "tags"]',
        'inputs.candidate=["id", "tags"]',
    )
    batch = batches_of(job)[0]
    (lookup,) = [lk for lk in job.spec.of_side("candidate") if lk.multi]
    found = LookedUp(batch, ranker.tables(batch.features), {}).of(lookup)
    weight = dict(ranker.tables.named_parameters())["embeddings.tags.weight"]
    values = data.items["tags"].to_pylist()
    expected = torch.stack([weight[values[i]].mean(0) for i in batch.candidate_items.tolist()])
    torch.testing.assert_close(found, expected)


def test_tables_on_meta_allocate_nothing(small_data: PreparedData) -> None:
    job = open_job(small_config(), small_data)
    ranker = build_ranker(job.config, job.schema, "meta")
    assert all(p.is_meta for p in ranker.tables.parameters())
    assert not any(p.is_meta for p in ranker.head.parameters())


def test_parameter_names_do_not_depend_on_dropout() -> None:
    names = [[name for name, _ in mlp([4, 3, 2], rate).named_parameters()] for rate in (0.0, 0.5)]
    assert names[0] == names[1]


def test_models_that_need_semantic_ids_say_so(tmp_path: Path) -> None:
    data = write_prepared(tmp_path, items=20)
    for overrides, message in (
        (("history.semantics=vectors",), "the history method reads semantic vectors"),
        ((), "inputs.candidate asks for 'sid', but the data set has no semantic ids"),
        (
            ('inputs.history=["id"]', 'inputs.candidate=["id"]'),
            "history.method = 'hisac' needs semantic ids",
        ),
    ):
        config = small_config(*overrides)
        with pytest.raises(UserError, match=message):
            build_ranker(config, ranker_schema(config, data, optional_semantics(data)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[history]\nmethod = 'mean'", r"key 'name' is required"),
        ("name = 'x'\n[history]\nkeep = [1]", r"key 'history.method' is required"),
        ("name = 'x'\n[rankr]\na = 1", r"unknown key 'rankr'; did you mean 'ranker'"),
        ("name = 'x'\n[tables]\ndim = 0", r"key 'tables.dim' = 0"),
        ("name = 'x'\n[history]\nmethod = 'hisac'\ntau = 0", r"\[history\]: key 'tau' = 0"),
    ],
)
def test_messages_of_a_model_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "model.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"model.toml: {message}"):
        load_model_config(file)


@pytest.mark.parametrize("buckets", [0, 5])
@pytest.mark.parametrize("types", [1, 3])
def test_an_event_is_the_sum_of_its_item_its_type_and_its_age(
    small_data: PreparedData, types: int, buckets: int
) -> None:
    job, _ = make(small_data)
    spec = replace(job.spec, event_types=types)
    batch = batches_of(job)[0]
    batch.history_type = torch.arange(batch.num_events) % types
    batch.history_age = torch.arange(batch.num_events).float() % 20
    torch.manual_seed(1)
    encoder = EventEncoder(spec, 8, buckets)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter)
    drawn = torch.Generator().manual_seed(1)
    rows = {
        key: JaggedTensor(torch.randn(len(ids.values()), 8, generator=drawn), lengths=ids.lengths())
        for key, ids in batch.features.to_dict().items()
    }
    found = LookedUp(batch, rows, {})
    expected = sum(found.of(lookup)[batch.history_rows] for lookup in spec.of_side("history"))
    assert (encoder.types is None) == (types == 1)
    if encoder.types is not None:
        expected = expected + encoder.types.weight[batch.history_type]
    if encoder.ages is not None:
        bucket = (batch.history_age.clamp_min(0) + 1).log2().floor().clamp_max(buckets - 1)
        assert len(bucket.unique()) > 2
        expected = expected + encoder.ages.weight[bucket.long()]
    torch.testing.assert_close(encoder(found, batch).each(), expected)
