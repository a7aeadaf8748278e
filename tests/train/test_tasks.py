"""Several tasks of one model: from training to the scorer, on tasks of which each depends on
something else (``planted_tasks``)."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import uvicorn
from planted_tasks import TASKS, planted_data
from training import logged, one_process, predict_run, small_config, train_run
from training import read_predictions as columns_of
from typer.testing import CliRunner

from hisac_rec.checkpoints.warm_start import WarmStart
from hisac_rec.cli.app import app
from hisac_rec.compare.score import describe_rows
from hisac_rec.config import validate
from hisac_rec.data.assemble import BatchAssembler
from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.contract import PreparedData
from hisac_rec.data.loader import RequestBatches
from hisac_rec.data.tasks import TaskConfig
from hisac_rec.errors import UserError
from hisac_rec.evaluation.metrics import auc, gauc
from hisac_rec.evaluation.predictions import read_predictions
from hisac_rec.evaluation.report import ITEM_AND_USER_MEAN, ITEM_MEAN
from hisac_rec.evaluation.results import Report
from hisac_rec.ranker.build import build_ranker
from hisac_rec.ranker.ranker import Ranker
from hisac_rec.scorer import LmdbStore, Scorer
from hisac_rec.scorer.http import make_app
from hisac_rec.scorer.store import fill_store
from hisac_rec.serving.cache import Cache
from hisac_rec.serving.compress import compress_run
from hisac_rec.serving.export import export_run
from hisac_rec.serving.score import SCORES, score_run
from hisac_rec.train.evaluate import evaluate_run, evaluate_tasks
from hisac_rec.train.job import Job, open_job
from hisac_rec.train.run import RunFolder

ALL = 'tasks.train=["*"]'
FEATURES = ('inputs.user=["id","*"]', 'inputs.candidate=["id","*","sid"]')
LEARNT = ("train.epochs=6", "train.early_stop=0", "loader.max_candidates=200")


@dataclass(frozen=True)
class Trained:
    data: PreparedData
    out: Path

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def data(folder: Path) -> PreparedData:
    return planted_data(folder, *TASKS)


@pytest.fixture(scope="module")
def joint(folder: Path, data: PreparedData) -> Trained:
    """Click, like and purchase, learned together and predicted."""
    train_run(small_config(*FEATURES, *LEARNT, ALL), data, folder / "joint")
    predict_run(folder / "joint", data)
    return Trained(data, folder / "joint")


@pytest.fixture(scope="module")
def alone(folder: Path, data: PreparedData) -> Trained:
    """A model that does not ask for tasks, of the same data."""
    train_run(small_config(*FEATURES, "name=alone"), data, folder / "alone")
    predict_run(folder / "alone", data)
    return Trained(data, folder / "alone")


@pytest.fixture(scope="module")
def reports(joint: Trained) -> list[Report]:
    return evaluate_tasks(joint.run, joint.data, draws=20)


def make(data: PreparedData, *overrides: str) -> tuple[Job, Ranker]:
    torch.manual_seed(0)
    job = open_job(small_config(*FEATURES, *overrides), data)
    return job, build_ranker(job.config, job.schema)


def first_batch(job: Job) -> RequestBatch:
    return next(iter(RequestBatches(job.data, "train", job.spec, job.items, job.config.loader)))


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[n], written out."""
    chance = logits.double().sigmoid()
    return -(labels * chance.log() + (1 - labels) * (1 - chance).log())


def test_every_task_is_learned(joint: Trained, reports: list[Report]) -> None:
    """Far beyond what the best predictor without histories knows of a click, and what item and
    user mean know of the others."""
    assert [report.task for report in reports] == ["click", "like", "purchase"]
    for report, least in zip(reports, (0.7, 0.75, 0.75), strict=True):
        assert report.value("small") > least, report.task  # type: ignore[operator]
    losses = [list(logged(joint.out, "train", "loss").values())]
    for task in ("click", "like", "purchase"):
        losses.append(list(logged(joint.out, "train", f"loss/{task}").values()))
    for of in losses:
        assert np.mean(of[-10:]) < np.mean(of[:10]) - 0.03


def test_the_log_says_what_the_loss_is_made_of(joint: Trained) -> None:
    """Of a step, its weighted sum; of a task with masked labels the mean over the others."""
    steps = logged(joint.out, "train", "loss")
    tasks = [logged(joint.out, "train", f"loss/{task}") for task in ("click", "like", "purchase")]
    clicks = joint.data.manifest.splits["train"].positives
    share = clicks / joint.data.manifest.splits["train"].candidates
    sums = {step: tasks[0][step] + tasks[1][step] + share * tasks[2][step] for step in steps}
    assert steps == pytest.approx(sums, rel=0.1)  # a step's own share of clicks varies


def test_predictions_have_columns_for_each_task(joint: Trained) -> None:
    table = pq.read_table(joint.run.predictions("test"))
    more = ["label_like", "logit_like", "label_purchase", "logit_purchase"]
    assert table.column_names[-4:] == more
    label, bought = table["label"].to_numpy(), table["label_purchase"]
    assert np.array_equal(bought.is_valid().to_numpy(), label == 1)
    assert table["label_like"].null_count == 0


def test_reports_are_exact_and_of_the_labelled_rows(joint: Trained, reports: list[Report]) -> None:
    table = pq.read_table(joint.run.predictions("test"))
    user = table["user"].to_numpy()
    for report, suffix in zip(reports, ("", "_like", "_purchase"), strict=True):
        label, logit = (table[f"{name}{suffix}"].to_numpy() for name in ("label", "logit"))
        known = ~np.isnan(label)
        assert report.rows == known.sum()
        assert report.positive_rate == pytest.approx(label[known].mean())
        value = report.predictor("small").metrics
        assert value["auc"].value == pytest.approx(auc(label[known], logit[known]), abs=1e-9)
        found = gauc(label[known], logit[known], user[known])
        assert value["gauc"].value == pytest.approx(found, abs=1e-9)
        assert value["auc"].low is not None
        by_length = [one for one in report.slices if one.axis == "history_length"]
        assert sum(one.rows for one in by_length) == report.rows
    (split,) = {report.value(ITEM_MEAN, "calibration") for report in reports[1:2]}
    assert split == pytest.approx(1.0, abs=0.15)  # fitted on likes, not on clicks
    assert reports[1].value(ITEM_MEAN) > 0.7  # type: ignore[operator]
    assert reports[2].value(ITEM_AND_USER_MEAN) > 0.7  # type: ignore[operator]
    names = {path.name for path in joint.out.glob("report-*.json")}
    assert names == {"report-test.json", "report-test-like.json", "report-test-purchase.json"}


def test_validation_measures_each_task(joint: Trained) -> None:
    (last,) = [
        json.loads(line)
        for line in (joint.out / "metrics.jsonl").read_text().splitlines()
        if '"group": "valid"' in line
    ][-1:]
    counts = joint.data.manifest
    labelled = {task.name: task.labelled["valid"] for task in counts.tasks}
    assert last["candidates"] == counts.splits["valid"].candidates
    assert last["purchase/candidates"] == labelled["purchase"] < labelled["like"]
    assert last["auc"] > 0.65
    assert min(last["like/auc"], last["purchase/auc"]) > 0.7


def test_one_task_stays_what_it_was(alone: Trained, folder: Path) -> None:
    """A model that does not ask for tasks learns the same bits from data that have some."""
    plain = Trained(planted_data(folder, out="plain"), folder / "one")
    train_run(small_config(*FEATURES), plain.data, plain.out)
    found = []
    predict_run(plain.out, plain.data)
    for one in (alone, plain):
        found.append(columns_of(one.run.predictions("test")))
        stored = one.run.checkpoints().find("last")
        manifest = json.loads((stored / "manifest.json").read_text())
        assert "tasks" not in manifest["architecture"]
        assert not {key for key in logged_keys(one.out) if "/click" in key}
    assert found[0].keys() == found[1].keys()
    for name, values in found[0].items():
        assert np.array_equal(values, found[1][name]), name


def test_a_comparison_knows_what_it_is_about(joint: Trained, alone: Trained) -> None:
    """The main task's rows are the same whatever else was learned; those of another are not."""
    of_click, of_purchase = (
        describe_rows(read_predictions(joint.run.predictions("test"), task), joint.data)
        for task in (None, "purchase")
    )
    plain = read_predictions(alone.run.predictions("test"))
    assert describe_rows(plain, alone.data) == of_click
    assert (of_click.task, of_purchase.task) == ("", "purchase")
    (purchase,) = [task for task in joint.data.manifest.tasks if task.name == "purchase"]
    assert of_purchase.rows == purchase.labelled["test"] < of_click.rows


def logged_keys(out: Path) -> set[str]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return {key for line in lines for key in json.loads(line)}


@pytest.mark.parametrize("weights", [(), ("tasks.weights={like=0.5,purchase=3}",)], ids=str)
def test_the_loss_by_hand(data: PreparedData, weights: tuple[str, ...]) -> None:
    job, ranker = make(data, ALL, *weights)
    batch = first_batch(job)
    loss, (seen, logits) = ranker(batch)
    assert logits.shape == (batch.num_candidates, 3)
    clicked = batch.labels == 1
    assert torch.equal(batch.tasks["purchase"].isnan(), ~clicked)
    sums = [
        cross_entropy(logits[:, 0], batch.labels).sum(),
        cross_entropy(logits[:, 1], batch.tasks["like"]).sum(),
        cross_entropy(logits[clicked, 2], batch.tasks["purchase"][clicked]).sum(),
    ]
    factors = (1, 0.5, 3) if weights else (1, 1, 1)
    whole = sum(f * float(s) for f, s in zip(factors, sums, strict=True)) / batch.num_candidates
    assert float(loss.detach()) == pytest.approx(whole, rel=1e-5)
    assert seen.tolist() == pytest.approx([whole, *map(float, sums)], rel=1e-5)


def test_masked_labels_pull_nothing(data: PreparedData) -> None:
    """Whatever else they are, gradients are the same; where all are masked, the tower has none."""
    job, ranker = make(data, ALL)
    batch = first_batch(job)

    def gradients(of: RequestBatch) -> dict[str, torch.Tensor]:
        ranker.zero_grad()
        ranker(of)[0].backward()
        return {name: p.grad.clone() for name, p in ranker.named_parameters() if p.grad is not None}

    whole = gradients(batch)
    assert all(grad.any() for name, grad in whole.items() if ".over" in name)
    none = torch.full_like(batch.tasks["purchase"], torch.nan)
    masked = gradients(replace(batch, tasks=batch.tasks | {"purchase": none}))
    assert masked.keys() == whole.keys()
    for name, grad in masked.items():
        assert grad.isfinite().all(), name
        if ".over_purchase." in name:
            assert not grad.any(), name
        elif ".over" in name:
            assert torch.equal(grad, whole[name]), name
    # What is under the towers hears of the other two alone.
    alone = make(data, 'tasks.train=["click","like"]')
    shared = dict(alone[1].named_parameters())
    for name, parameter in ranker.named_parameters():
        if name in shared:
            shared[name].data.copy_(parameter.data)
    alone[1](first_batch(alone[0]))[0].backward()
    for name, parameter in shared.items():
        torch.testing.assert_close(parameter.grad, masked[name], msg=name)


def test_the_batch_of_a_rank_that_has_run_out(data: PreparedData) -> None:
    job, ranker = make(data, ALL)
    loss, (seen, logits) = ranker(BatchAssembler(job.spec, job.items).empty())
    loss.backward()
    assert (seen.tolist(), logits.shape) == ([0.0] * 4, (0, 3))
    for name, parameter in ranker.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_towers(data: PreparedData) -> None:
    """The main task's is the one that a model of one task has; others may be of other sizes."""
    _, one = make(data)
    _, several = make(data, 'tasks.train=["click","like"]', "tasks.over_layers={like=[5]}")
    before, now = (dict(ranker.named_parameters()) for ranker in (one, several))
    for name, parameter in before.items():
        if name.startswith("head."):  # tables are filled by name when they are sharded
            assert torch.equal(now[name], parameter), name
    new = now.keys() - before.keys()
    assert {name.split(".")[2] for name in new} == {"over_like"}
    assert now["head.dense.over_like.out.weight"].shape == (1, 5)
    assert now["head.dense.over.out.weight"].shape == (1, 16)


def test_another_main_task(joint: Trained, tmp_path: Path) -> None:
    """The first task named chooses checkpoints and is what is evaluated; its labels may be
    masked."""
    config = small_config(*FEATURES, 'tasks.train=["purchase","click"]')
    best = train_run(config, joint.data, tmp_path / "run")
    predict_run(tmp_path / "run", joint.data)
    run = RunFolder(tmp_path / "run")
    report = evaluate_run(run, joint.data, draws=0, against={"joint": joint.run})
    (counted,) = [task for task in joint.data.manifest.tasks if task.name == "purchase"]
    assert (report.task, report.rows) == ("purchase", counted.labelled["test"])
    assert [p.name for p in report.predictors[:2]] == ["small", "joint"]
    assert "click/auc" in best
    with pytest.raises(
        UserError, match=r"no predictions of task 'like'.* learned: purchase, click"
    ):
        evaluate_run(run, joint.data, draws=0, task="like")
    valid = logged(run.root, "valid", "auc")
    assert max(valid.values()) == pytest.approx(best["auc"])
    assert logged(run.root, "valid", "candidates") == dict.fromkeys(
        valid, counted.labelled["valid"]
    )


def test_evaluate_as_typed(joint: Trained, alone: Trained) -> None:
    def invoke(*arguments: str | Path) -> str:
        words = ["evaluate", *map(str, arguments), "--split", "valid", "--draws", "0"]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "planted, click" in invoke(alone.out)
    text = invoke(joint.out, "--against", alone.out)
    assert text.count("alone") > 1
    assert re.findall(r"^(click|like|purchase) ", text, re.MULTILINE) == [
        *("click", "like", "purchase")
    ]
    liked = Report.load(joint.out / "report-valid-like.json")
    assert [p.name for p in liked.predictors] == ["small", ITEM_MEAN, ITEM_AND_USER_MEAN]
    text = invoke(joint.out, "--task", "like")
    assert "planted, like" in text
    assert "planted, click" not in text
    with pytest.raises(UserError, match=r"--task lik: .* not learned it; did you mean 'like'"):
        invoke(joint.out, "--task", "lik")


def test_going_on_with_more_tasks(alone: Trained, tmp_path: Path) -> None:
    """The shared part and the tower that was there are kept, new towers are fresh."""
    config = small_config(*FEATURES, 'tasks.train=["click","like"]', "train.max_candidates=300")
    train_run(config, alone.data, tmp_path / "run", warm=WarmStart(alone.out))
    lines = (tmp_path / "run" / "warm_start.md").read_text().splitlines()
    towers = {line.split("|")[1].strip(): line for line in lines if "over" in line}
    assert towers
    for name, line in towers.items():
        assert ("new" in line) == ("over_like" in name), line
    assert any("over_like" in name for name in towers)


def test_a_checkpoint_of_other_tasks_is_refused(joint: Trained) -> None:
    other = small_config(*FEATURES, 'tasks.train=["like","click","purchase"]')
    with pytest.raises(UserError, match=r"another model: tasks.train = \['click', 'like', "):
        predict_run(joint.out, joint.data, config=other)


@pytest.mark.parametrize("weight", [0, -1])
def test_weights_are_positive(weight: float) -> None:
    with pytest.raises(UserError, match=r"weights\.like = .* more than 0"):
        validate(TaskConfig, {"weights": {"like": weight}}, "m.toml")


@pytest.fixture(scope="module")
def scorer(joint: Trained, folder: Path) -> Iterator[Scorer]:
    with one_process() as ranks:
        export_run(joint.run, joint.data, folder / "model", compiled=False)
        compress_run(joint.run, joint.data, ranks, folder / "cache", at="last")
    store = LmdbStore(folder / "store")
    fill_store(store, Cache(folder / "cache"))
    yield Scorer.load(folder / "model", store)
    store.close()


def test_bulk_scores_of_each_task(joint: Trained, tmp_path: Path) -> None:
    with one_process() as ranks:
        score_run(joint.run, joint.data, ranks, tmp_path)
    scores = pq.read_table(tmp_path / SCORES)
    assert scores.column_names[-2:] == ["score_like", "score_purchase"]
    predicted = pq.read_table(joint.run.predictions("test"))
    for name in ("like", "purchase"):
        chance = 1 / (1 + np.exp(-predicted[f"logit_{name}"].to_numpy().astype(np.float64)))
        np.testing.assert_allclose(
            np.sort(scores[f"score_{name}"].to_numpy()), np.sort(chance), atol=1e-6
        )


@contextmanager
def listening(scorer: Scorer) -> Iterator[str]:
    """The HTTP front in a thread; its URL."""
    config = uvicorn.Config(make_app(scorer), port=0, log_level="error")
    server, socket = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    socket.listen()
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def ask(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_the_scorer_gives_each_task(joint: Trained, scorer: Scorer) -> None:
    predicted = pq.read_table(joint.run.predictions("test")).to_pylist()
    users = joint.data.read_parquet("vocab/user.parquet")["value"].to_pylist()
    names = joint.data.items["raw_id"].to_pylist()
    last = max(row["request"] for row in predicted if row["user"] == 7)
    rows = [row for row in predicted if row["request"] == last]
    items, time = [names[row["item"]] for row in rows], rows[0]["time"]
    found = scorer.score_tasks(users[7], items, time=time)
    assert list(found) == ["click", "like", "purchase"]
    logits = {"click": "logit", "like": "logit_like", "purchase": "logit_purchase"}
    for task, column in logits.items():
        wanted = 1 / (1 + np.exp(-np.array([row[column] for row in rows])))
        np.testing.assert_allclose(found[task], wanted, atol=1e-5)
    assert np.array_equal(scorer.score(users[7], items, time=time), found["click"])

    with listening(scorer) as url:
        assert ask(f"{url}/health")["tasks"] == ["click", "like", "purchase"]
        answer = ask(f"{url}/score", {"user": users[7], "items": items, "time": time})
    order = np.argsort(-found["click"], kind="stable")
    assert [one["item"] for one in answer["scores"]] == [items[at] for at in order]
    for one, at in zip(answer["scores"], order, strict=True):
        assert one["score"] == pytest.approx(float(found["click"][at]))
        assert one["tasks"] == pytest.approx(
            {task: float(found[task][at]) for task in ("like", "purchase")}
        )
    assert list(scorer.score_tasks(users[7], [])) == ["click", "like", "purchase"]
