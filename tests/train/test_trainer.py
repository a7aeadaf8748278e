"""Training in one process, end to end on real Parquet: learning, stopping, going on."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import write_prepared
from training import logged, one_process, predict_run, record_requests, small_config, train_run

from hisac_rec.checkpoints.saving import Position
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import predict
from hisac_rec.train.reading import Reading
from hisac_rec.train.run import RunFolder
from hisac_rec.train.trainer import Trainer

VECTORS = "history.semantics=vectors"


class InterruptedRunError(Exception):
    pass


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let training die, as by power failure, right after a step was counted."""
    count = Trainer._count

    def counted(self: Trainer, *arguments: Any) -> None:
        count(self, *arguments)
        if self.position.step == step:
            raise InterruptedRunError

    monkeypatch.setattr(Trainer, "_count", counted)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (VECTORS,),
        ("train.precision=bf16",),
        (VECTORS, "train.precision=bf16"),
        ("tables.dtype=fp16",),
        ("train.sparse_optimizer=adagrad", "train.decay=cosine"),
        ("train.sparse_optimizer=sgd", "train.decay=none", "train.sparse_lr=10"),
        ('history={method="mean"}', "ranker.dropout=0.1"),
        ('history={method="recent"}', "ranker.recent=0", "ranker.age_buckets=0"),
        ('history={method="none"}', "inputs.history=[]"),
        ("ranker.include_vectors=false", 'inputs.candidate=["id"]', 'inputs.history=["*"]'),
        pytest.param(("loader.workers=2",), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_the_loss_falls(small_data: PreparedData, tmp_path: Path, overrides: Any) -> None:
    best = train_run(small_config("train.epochs=3", *overrides), small_data, tmp_path / "run")
    losses = list(logged(tmp_path / "run", "train", "loss").values())
    assert np.isfinite(losses).all()
    assert np.mean(losses[-20:]) < np.mean(losses[:10]) - 0.005
    assert best["auc"] > 0.55


def test_the_run_folder_is_complete(small_data: PreparedData, tmp_path: Path) -> None:
    config = small_config("tables.pool=false")  # all that is chosen
    train_run(config, small_data, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert run.config() == config
    assert run.info().world_size == 1
    assert run.data(None).manifest == small_data.manifest
    assert run.plan.is_file()
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    assert not list(tmp_path.rglob("*.partial"))


def test_other_ranks_never_meet_half_a_file(small_data: PreparedData, tmp_path: Path) -> None:
    """Rank 1 may read what rank 0 is just writing: an open file keeps its text to the end."""
    config = small_config()
    with one_process() as ranks:
        job = open_job(config, small_data)
        plan, folder = resolve_plan(job, ranks, None), RunFolder(tmp_path)
        folder.create(job, plan, world_size=1, device="cpu")
        names = ("run.json", "config.toml", "plan.json")
        opened = {name: (tmp_path / name).open() for name in names}
        texts = {name: (tmp_path / name).read_text() for name in names}
        folder.create(job, plan, world_size=2, device="cpu")
    for name, file in opened.items():
        with file:
            assert file.read() == texts[name]
    assert folder.info().world_size == 2


def make_trainer(config: Any, data: PreparedData, out: Path, ranks: Any) -> Trainer:
    job = open_job(config, data)
    model = shard(job, resolve_plan(job, ranks, None), ranks)
    return Trainer(job, ranks, RunFolder(out), model, Optimizers(model, config.train))


def test_frozen_vectors_stay_bit_identical(small_data: PreparedData, tmp_path: Path) -> None:
    config = small_config(VECTORS, "train.sparse_weight_decay=0.1", "train.dense_weight_decay=0.1")
    with one_process() as ranks:
        trainer = make_trainer(config, small_data, tmp_path, ranks)
        before = {k: v.clone() for k, v in tables_of(trainer).items()}
        trainer.run()
        after = tables_of(trainer)
    trainer.close()
    (vectors,) = [key for key in after if "semantic_vector" in key]
    assert trainer.job.semantics is not None
    assert torch.equal(after[vectors], torch.from_numpy(trainer.job.semantics.vectors.copy()))
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed == after.keys() - {vectors}


def tables_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The one shard that one process holds of each table."""
    state = trainer.model.state_dict()
    return {
        key: getattr(value, "local_shards", lambda v=value: [v])()[0]
        if not hasattr(value, "local_shards")
        else value.local_shards()[0].tensor
        for key, value in state.items()
        if ".embeddings." in key
    }


@pytest.mark.parametrize("overrides", [(), (VECTORS, "tables.dtype=fp16")], ids=" ".join)
def test_saved_and_loaded_predictions_are_bit_equal(
    small_data: PreparedData, tmp_path: Path, overrides: Any
) -> None:
    config = small_config(*overrides)
    out = tmp_path / "run"
    with one_process() as ranks:
        trainer = make_trainer(config, small_data, out, ranks)
        trainer.folder.create(
            trainer.job, resolve_plan(trainer.job, ranks, None), world_size=1, device="cpu"
        )
        trainer.run()
        trainer.close()
        feeder = trainer.batches.in_order("test")
        logits = torch.cat(
            [x for _, x in predict(trainer.model, trainer.optimizers, ranks, feeder)]
        )
    loaded = predict_run(out, small_data, checkpoint="last")
    assert len(loaded["logit"]) == len(logits)
    assert np.array_equal(np.sort(loaded["logit"]), np.sort(logits.numpy()))
    assert np.ptp(loaded["logit"]) > 0.1


@pytest.mark.parametrize(
    ("overrides", "stop_at"),
    [
        (("train.checkpoint_every=5",), 13),  # within the first epoch
        pytest.param(("train.checkpoint_every=5", "loader.workers=2"), 13, marks=pytest.mark.slow),
        (("train.checkpoint_every=9", "ranker.dropout=0.3"), 40),  # within the second
        (("train.eval_every=6",), 14),  # from a checkpoint of an evaluation
        ((), 40),  # from the one at the end of the first epoch
    ],
    ids=str,
)
def test_resume_continues_the_loss_curve(
    small_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: Any,
    stop_at: int,
) -> None:
    config = small_config("train.epochs=2", *overrides)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    best = train_run(config, small_data, whole)
    with monkeypatch.context() as patch:
        interrupt_after(patch, stop_at)
        with pytest.raises(InterruptedRunError):
            train_run(config, small_data, parts)
    last = RunFolder(parts).checkpoints().steps()[-1]
    assert last <= stop_at
    (parts / "metrics.jsonl").unlink()
    assert train_run(config, small_data, parts, resume=True) == pytest.approx(best, abs=1e-6)
    expected, found = (logged(folder, "train", "loss") for folder in (whole, parts))
    assert found == pytest.approx({s: v for s, v in expected.items() if s > last}, abs=1e-6)
    one, other = (predict_run(f, small_data, checkpoint="last")["logit"] for f in (whole, parts))
    np.testing.assert_allclose(other, one, atol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [(), ("loader.workers=2", "loader.batch_tokens=4000", "loader.shuffle_requests=100")],
    ids=str,
)
def test_each_request_is_trained_on_once_an_epoch(
    small_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: tuple[str, ...],
) -> None:
    """Killed in the midst of an epoch, and resumed as it was or with batches cut otherwise."""
    trained = record_requests(monkeypatch)
    first = ("train.checkpoint_every=5", "train.early_stop=0")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 13)
        with pytest.raises(InterruptedRunError):
            train_run(small_config(*first), small_data, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    with one_process():
        kept = Reading.load(run.checkpoints().find("last"), dealt_anew=True).before
    lost = [number for number in trained if not kept.holds(np.array([number]))[0]]
    assert len(kept) + len(lost) == len(trained)
    assert lost  # steps after the last checkpoint are done again
    trained.clear()
    train_run(small_config(*first, *changed), small_data, tmp_path / "run", resume=True)
    assert len(trained) == len(set(trained))
    assert not kept.holds(np.array(trained)).any()
    assert len(trained) + len(kept) == small_data.manifest.splits["train"].requests
    assert set(lost) < set(trained)


def test_resuming_a_finished_run_changes_nothing(small_data: PreparedData, tmp_path: Path) -> None:
    best = train_run(small_config(), small_data, tmp_path / "run")
    assert train_run(small_config(), small_data, tmp_path / "run", resume=True) == best
    # Also where the last step of the epoch is due for an evaluation anyhow.
    steps = max(logged(tmp_path / "run", "train", "loss"))
    config = small_config(f"train.eval_every={steps}")
    train_run(config, small_data, tmp_path / "two")
    lines = (tmp_path / "two" / "metrics.jsonl").read_text()
    train_run(config, small_data, tmp_path / "two", resume=True)
    assert (tmp_path / "two" / "metrics.jsonl").read_text() == lines


def test_more_epochs_may_be_asked_on_resume(small_data: PreparedData, tmp_path: Path) -> None:
    train_run(small_config("train.epochs=1"), small_data, tmp_path / "run")
    steps = max(logged(tmp_path / "run", "train", "loss"))
    train_run(small_config("train.epochs=2"), small_data, tmp_path / "run", resume=True)
    assert max(logged(tmp_path / "run", "train", "loss")) > 1.5 * steps


@pytest.mark.parametrize("passes", [0.4, 1.5])
def test_a_budget_of_candidates(small_data: PreparedData, tmp_path: Path, passes: float) -> None:
    """Training ends at the step that spends it, also within a pass, with one evaluation there."""
    whole = small_data.manifest.splits["train"].candidates
    budget = int(passes * whole)
    config = small_config("train.epochs=4", f"train.max_candidates={budget}")
    seen: list[Position] = []
    best = train_run(config, small_data, tmp_path / "run", watcher=lambda at, _: seen.append(at))
    spent = [at.epoch * whole + at.candidates for at in seen]
    assert budget <= spent[-1] < budget + config.loader.max_candidates
    assert spent[:-1] == [whole] * int(passes)
    factors = logged(tmp_path / "run", "train", "learning_rate_factor")
    assert list(factors.values())[-1] == pytest.approx(config.train.final_lr)
    again = train_run(config, small_data, tmp_path / "run", resume=True)
    assert again == best


def test_a_watcher_sees_every_evaluation_and_may_end_the_training(
    small_data: PreparedData, tmp_path: Path
) -> None:
    seen: list[tuple[int, int, float]] = []

    def watch(position: Position, metrics: dict[str, float]) -> None:
        seen.append((position.step, position.epoch, metrics["auc"]))
        if len(seen) == 3:
            raise InterruptedRunError

    config = small_config("train.epochs=4", "train.early_stop=0", "train.eval_every=20")
    with pytest.raises(InterruptedRunError):
        train_run(config, small_data, tmp_path / "run", watcher=watch)
    assert [epoch for _, epoch, _ in seen] == [0, 1, 1]
    assert {step: auc for step, _, auc in seen} == logged(tmp_path / "run", "valid", "auc")
    # The checkpoint of that evaluation is there: the run may go on.
    train_run(config, small_data, tmp_path / "run", resume=True, watcher=watch)
    assert seen[-1][1] == 4


def test_early_stop(small_data: PreparedData, tmp_path: Path) -> None:
    still = ("train.dense_lr=1e-30", "train.sparse_lr=1e-30", "train.epochs=9")
    train_run(small_config(*still, "train.early_stop=2"), small_data, tmp_path / "run")
    assert len(logged(tmp_path / "run", "valid", "auc")) == 3  # the first, then two no better


@pytest.mark.parametrize("metric", ["auc", "gauc", "logloss"])
def test_the_best_checkpoint_is_that_of_the_metric(
    small_data: PreparedData, tmp_path: Path, metric: str
) -> None:
    config = small_config(
        "train.epochs=3", f"train.metric={metric}", "train.early_stop=0", "train.eval_every=11"
    )
    train_run(config, small_data, tmp_path / "run")
    values = logged(tmp_path / "run", "valid", metric)
    best = (min if metric == "logloss" else max)(values, key=values.__getitem__)
    checkpoints = RunFolder(tmp_path / "run").checkpoints()
    assert checkpoints.find("best") == checkpoints.path(best)
    kept = sorted({best, *sorted(values)[-config.train.keep_checkpoints :]})
    assert checkpoints.steps() == kept


@pytest.mark.parametrize(
    "when", [(), ("train.checkpoint_every=3",), ("train.eval_every=3",)], ids=str
)
def test_a_loss_that_is_not_finite_stops_the_run(
    small_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: Any
) -> None:
    """The message names step and users, and no checkpoint holds the broken weights."""
    count = Trainer._count

    def poison(self: Trainer, *arguments: Any) -> None:
        count(self, *arguments)
        if self.position.step == 4:  # the pipeline has not begun the dense part of step 5
            with torch.no_grad():
                next(self.optimizers.dense.params.values().__iter__()).fill_(float("nan"))

    monkeypatch.setattr(Trainer, "_count", poison)
    config = small_config("train.log_every=50", *when)
    message = r"the loss is not finite at step 5 on rank 0: \d+ requests, the first of user \d+"
    with pytest.raises(UserError, match=message) as caught:
        train_run(config, small_data, tmp_path / "run")
    assert int(re.search(r"first of user (\d+)", str(caught.value)).group(1)) <= 200
    assert RunFolder(tmp_path / "run").checkpoints().steps() == ([3] if when else [])


def test_a_huge_learning_rate_is_noticed(small_data: PreparedData, tmp_path: Path) -> None:
    config = small_config("train.dense_lr=1e30", "train.clip_norm=0")
    with pytest.raises(UserError, match=r"lower train\.dense_lr or train\.sparse_lr") as caught:
        train_run(config, small_data, tmp_path / "run")
    # Nothing goes on reading, though the caught exception holds the frames of the training.
    assert caught.tb is not None
    assert "loader" not in {thread.name for thread in threading.enumerate()}


def test_a_taken_folder_and_nothing_to_resume(small_data: PreparedData, tmp_path: Path) -> None:
    config = small_config()
    with pytest.raises(UserError, match="run: no run to resume there"):
        train_run(config, small_data, tmp_path / "run", resume=True)
    train_run(config, small_data, tmp_path / "run")
    with pytest.raises(UserError, match="run: holds a run already; choose another --out"):
        train_run(config, small_data, tmp_path / "run")
    other = small_config("ranker.recent=7")
    with pytest.raises(UserError, match=r"config.toml: .*ranker.recent = 20 there, 7"):
        train_run(other, small_data, tmp_path / "run", resume=True)


def test_a_plan_of_another_model(small_data: PreparedData, tmp_path: Path) -> None:
    train_run(small_config(), small_data, tmp_path / "run")
    plan = RunFolder(tmp_path / "run").plan
    train_run(small_config(), small_data, tmp_path / "again", plan=plan)
    wide = small_config("tables.dim=16")
    with pytest.raises(UserError, match=r"plan.json: table '\w+' .* is [\d,]+ x 16 .* x 8 "):
        train_run(wide, small_data, tmp_path / "wide", plan=plan)
    assert not (tmp_path / "wide").exists()


def test_histories_empty_throughout(tmp_path: Path) -> None:
    """Users without any event are requests like others."""
    rows = [
        {
            "user": user,
            "history_item": [],
            "history_type": [],
            "history_time": [],
            "requests": [
                {"time": 5, "history_end": 0, "items": [1, 2], "labels": [1.0, float(user % 2)]}
            ],
        }
        for user in range(1, 9)
    ]
    data = write_prepared(tmp_path / "data", rows=dict.fromkeys(("train", "valid", "test"), rows))
    for method in ("mean", "recent"):
        config = small_config(
            f'history={{method="{method}"}}', 'inputs.history=["id"]', 'inputs.candidate=["id"]'
        )
        train_run(config, data, tmp_path / method)
        predictions = predict_run(tmp_path / method, data)
        assert np.isfinite(predictions["logit"]).all()
        assert len(predictions["logit"]) == 16
