"""Checkpoints: what is refused, what counts as complete, what is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp
from training import logged, one_process, predict_run, small_config, train_run

from hisac_rec.checkpoints.saving import MANIFEST, Checkpoints, first_difference, read_manifest
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.planning.plan_io import load_plan
from hisac_rec.ranker.config import load_model_config
from hisac_rec.train.evaluate import write_predictions
from hisac_rec.train.run import RunFolder


@pytest.fixture(scope="module")
def trained(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at steps 10, 20 and the end; read only."""
    out = tmp_path_factory.mktemp("trained") / "run"
    config = small_config("train.checkpoint_every=10", "train.keep_checkpoints=3")
    train_run(config, small_data, out)
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunFolder:
    """A copy that may be damaged."""
    return RunFolder(Path(shutil.copytree(trained, tmp_path / "run")))


def test_find(run: RunFolder) -> None:
    checkpoints = run.checkpoints()
    steps = checkpoints.steps()
    assert steps[:2] == [10, 20]
    assert checkpoints.find("last") == checkpoints.path(steps[-1])
    assert checkpoints.find("best") == checkpoints.path(steps[-1])  # the only evaluated one
    assert checkpoints.find("10").name == "step-00000010"
    with pytest.raises(UserError, match=rf"no checkpoint '11'; there are steps 10, 20, {steps[2]}"):
        checkpoints.find("11")
    with pytest.raises(UserError, match="no checkpoint 'last'; there is none yet"):
        Checkpoints(run.root / "nowhere").find("last")


def test_an_unfinished_checkpoint_does_not_count(run: RunFolder, small_data: PreparedData) -> None:
    """Neither one without its manifest nor one still under its temporary name."""
    checkpoints = run.checkpoints()
    *_, before, last = checkpoints.steps()
    (checkpoints.path(last) / MANIFEST).unlink()
    shutil.copytree(checkpoints.path(before), checkpoints.folder / ".step-00000099.partial")
    assert checkpoints.find("last") == checkpoints.path(before)
    assert checkpoints.find("best") == checkpoints.path(before)  # the named one is gone
    with pytest.raises(UserError, match=r"not a complete checkpoint \(manifest.json is missing"):
        read_manifest(checkpoints.path(last))
    train_run(run.config(), small_data, run.root, resume=True)  # goes on from the one before
    assert checkpoints.find("last") == checkpoints.path(last)


@pytest.mark.parametrize("pattern", ["*.distcp", ".metadata"])
@pytest.mark.parametrize("how", ["truncated", "removed", "flipped"])
def test_a_damaged_checkpoint(
    run: RunFolder, small_data: PreparedData, pattern: str, how: str
) -> None:
    path = run.checkpoints().find("best")
    for file in path.glob(pattern):
        content = bytearray(file.read_bytes())
        if how == "removed":
            file.unlink()
        elif how == "flipped":  # one bit, in the middle of some tensor
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        else:
            file.write_bytes(content[: len(content) // 3])
    with pytest.raises(UserError, match=rf"{path.name}: the checkpoint cannot be read") as caught:
        predict_run(run.root, small_data)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tables.dim=16", r"tables.dim = 8 there, 16"),
        ("history.keep=[3, 3]", r"history.keep = \[3, 2\] there, \[3, 3\]"),
        ('history={method="mean"}', r"history.agent_weight = 'bias' there, None"),
        ("ranker.recent=3", r"ranker.recent = 20 there, 3"),
        ('inputs.user=["id"]', r"inputs.user = \['id', '\*'\] there, \['id'\]"),
        ("train.sparse_optimizer=sgd", r"sparse_optimizer = 'rowwise_adagrad' there, 'sgd'"),
    ],
)
def test_a_checkpoint_of_another_configuration(
    trained: Path, small_data: PreparedData, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=f"is for another model: {message} in this"):
        predict_run(trained, small_data, config=small_config(override))


def test_a_checkpoint_of_other_data(run: RunFolder, small_data: PreparedData) -> None:
    manifest = run.checkpoints().find("best") / MANIFEST
    content = json.loads(manifest.read_text())
    for key, message in (
        ("semantics_fingerprint", "was made with other semantic ids"),
        ("data_fingerprint", "was made on other data"),
    ):
        manifest.write_text(json.dumps(content | {key: "0123456789abcdef"}))
        with pytest.raises(UserError, match=rf"{message} \(fingerprint 0123456789ab, this data"):
            predict_run(run.root, small_data)


def test_a_checkpoint_tells_all_of_its_training(trained: Path, small_data: PreparedData) -> None:
    """What is needed to go on from it, and to know what it is, lies in its folder, sealed."""
    run = RunFolder(trained)
    path = run.checkpoints().find("10")
    manifest = read_manifest(path)
    assert manifest.position.step == 10
    assert {"torch", "torchrec"} <= manifest.versions.keys()
    assert manifest.data_fingerprint == small_data.manifest.fingerprint
    assert load_model_config(path / "config.toml") == run.config()
    assert load_plan(path / "plan.json") == load_plan(run.plan)
    assert {"config.toml", "plan.json", "reading.npz", ".metadata"} < manifest.files.keys()
    stored = dcp.FileSystemReader(str(path)).read_metadata().state_dict_metadata
    kinds = {key.rsplit(".", 1)[-1] if "optim" in key else key.split(".")[0] for key in stored}
    assert {"model", "random", "momentum1", "exp_avg", "exp_avg_sq", "step"} <= kinds


def test_the_best_checkpoints_are_kept(small_data: PreparedData, tmp_path: Path) -> None:
    config = small_config(
        "train.epochs=3",
        "train.eval_every=5",
        "train.early_stop=0",
        "train.keep_best=3",
        "train.keep_checkpoints=1",
    )
    train_run(config, small_data, tmp_path / "run")
    values = logged(tmp_path / "run", "valid", "auc")
    best = sorted(values, key=lambda step: (-values[step], step))[:3]
    checkpoints = RunFolder(tmp_path / "run").checkpoints()
    assert checkpoints.steps() == sorted({*best, max(values)})
    assert checkpoints.find("best") == checkpoints.path(best[0])
    scores = [read_manifest(checkpoints.path(step)).score for step in best]
    assert scores == [values[step] for step in best]


def test_learning_rates_may_differ(trained: Path, small_data: PreparedData) -> None:
    predict_run(trained, small_data, config=small_config("train.dense_lr=0.5", "ranker.dropout=.5"))


def test_messages_of_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run \(config.toml is missing\)"):
        RunFolder(tmp_path).config()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json: not readable"):
        RunFolder(tmp_path).data(None)


def test_predictions_of_an_earlier_checkpoint_differ(
    trained: Path, small_data: PreparedData
) -> None:
    early = predict_run(trained, small_data, checkpoint="10")
    late = predict_run(trained, small_data, checkpoint="best")
    assert (early["label"] == late["label"]).all()
    assert abs(early["logit"] - late["logit"]).max() > 1e-3


def test_every_split_can_be_predicted(trained: Path, small_data: PreparedData) -> None:
    with one_process() as ranks:
        for split in ("valid", "train"):
            folder = write_predictions(RunFolder(trained), small_data, ranks, split=split)  # type: ignore[arg-type]
            assert any(folder.glob("*.parquet"))


def test_first_difference() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) == ""
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b = 1 there, 2"
    assert first_difference({}, {"c": 2}) == "c = None there, 2"
