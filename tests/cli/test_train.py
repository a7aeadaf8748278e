"""``train`` and ``evaluate`` as typed: one process, two through torchrun, and refusals."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from training import predict_run, read_predictions, torchrun
from typer.testing import CliRunner

from hisac_rec.cli.app import app
from hisac_rec.config import dump_toml
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.train.run import RunFolder

SMALL_SETS = [
    "tables.dim=8",
    "history.keep=[3,2]",
    "train.epochs=1",
    "train.evaluations=1",
    "train.warmup_steps=2",
    "loader.batch_tokens=6000",
]


def sets(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    invoke("train", "hisac", small_data.root, "--out", out, *sets(*SMALL_SETS))
    return out


def test_the_resolved_configuration_is_kept(trained: Path) -> None:
    config = RunFolder(trained).config()
    assert config.history["keep"] == [3, 2]
    assert config.train.epochs == 1
    assert "tau" in config.history
    assert (trained / "config.toml").read_text() == dump_toml(config)


def test_start_from_another_run_with_checkpoints_elsewhere(
    trained: Path, small_data: PreparedData, tmp_path: Path
) -> None:
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    warm = ["--warm-start", trained, "--warm-start-optimizer"]
    quick = sets(*SMALL_SETS, "train.max_candidates=500")
    invoke(
        "train", "hisac", small_data.root, "--out", out, "--checkpoints", elsewhere, *warm, *quick
    )
    assert (
        "| item | 151 | 151 | 151 | 0 | 0 | the same data |" in (out / "warm_start.md").read_text()
    )
    assert [path.name for path in elsewhere.iterdir()] == [
        RunFolder(out).checkpoints().find("last").name
    ]
    assert not (out / "checkpoints").exists()


def without_times(text: str) -> str:
    """The output without the clock of its log lines."""
    return re.sub(r"^\d\d:\d\d:\d\d ", "", text, flags=re.MULTILINE)


def test_evaluate_prints_and_saves_a_report(trained: Path, small_data: PreparedData) -> None:
    text = invoke("evaluate", trained, "--draws", "5")
    for expected in ("AUC", "GAUC", "item mean"):
        assert expected.lower() in text.lower()
    assert (trained / "report-test.md").is_file()
    assert json.loads((trained / "report-test.json").read_text())
    again = invoke(
        "evaluate", trained, "--data", small_data.root, "--draws", "5", "--planner", "1xcpu"
    )
    assert without_times(again) == without_times(text)


def test_another_run_beside_it(trained: Path, small_data: PreparedData, tmp_path: Path) -> None:
    floor = tmp_path / "floor"
    quick = ["train.epochs=1", "tables.dim=8"]
    invoke("train", "no_history", small_data.root, "--out", floor, *sets(*quick))
    invoke("evaluate", floor, "--draws", "0", "--split", "valid")
    text = invoke("evaluate", trained, "--against", floor, "--draws", "5", "--split", "valid")
    assert "no history" in text
    # A report of each split, beside one another.
    assert {path.name for path in floor.glob("report-*")} == {
        "report-valid.json",
        "report-valid.md",
    }
    assert (trained / "report-valid.json").is_file()


def test_profile(small_data: PreparedData, tmp_path: Path) -> None:
    out = tmp_path / "run"
    few = [*SMALL_SETS, "loader.max_candidates=300"]
    text = invoke("train", "hisac", small_data.root, "--out", out, "--profile", *sets(*few))
    for part in ("history method, compress", "backward", "dense optimiser", "aten::"):
        assert part in text
    kept = re.search(r"Kept for the backward pass: ([\d.]+) MiB", text)
    assert kept
    assert 0.05 < float(kept[1]) < 50
    with gzip.open(out / "profile" / "rank0.json.gz") as file:
        trace = json.load(file)
    steps = [e for e in trace["traceEvents"] if e.get("name", "").startswith("ProfilerStep")]
    assert len({e["name"] for e in steps}) == 10
    assert RunFolder(out).checkpoints().steps()  # and the training went on to its end


@pytest.mark.distributed
def test_two_ranks_through_torchrun(small_data: PreparedData, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["-m", "hisac_rec", "train", "hisac", small_data.root, "--out", out]
    torchrun(*arguments, "--planner", "2xcpu", *sets(*SMALL_SETS))
    run = RunFolder(out)
    assert run.info().world_size == 2
    assert (
        json.loads((out / "plan.json").read_text())["planner"]["topology"]["devices_per_host"] == 2
    )
    invoke("evaluate", out, "--draws", "0")
    on_one = read_predictions(run.predictions("test"))
    assert len(on_one["label"]) == small_data.manifest.splits["test"].candidates


def test_resume_and_a_saved_plan(trained: Path, small_data: PreparedData, tmp_path: Path) -> None:
    out = tmp_path / "run"
    plan = trained / "plan.json"
    invoke("train", "hisac", small_data.root, "-o", out, "--plan", plan, *sets(*SMALL_SETS))
    before = predict_run(out, small_data, checkpoint="last")["logit"]
    assert (before == predict_run(trained, small_data, checkpoint="last")["logit"]).all()
    more = [*SMALL_SETS, "train.epochs=2"]
    invoke("train", "hisac", small_data.root, "-o", out, "--resume", *sets(*more))
    assert (before != predict_run(out, small_data, checkpoint="last")["logit"]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hisack"], r"hisack: neither a file nor the name .*did you mean 'hisac'"),
        (["hisac", *sets("train.epoch=1")], r"unknown key 'train.epoch'; did you mean 'epochs'"),
        (["hisac", *sets("train.epochs=0")], r"key 'train.epochs' = 0: .*greater than 0"),
        (["hisac", *sets("history.kep=1")], r"\[history\]: unknown key 'kep'; did you mean 'keep'"),
        (["hisac", *sets("history.keep=[4]")], r"history.keep = \[4\]: the codebook has 2 levels"),
        (["hisac", *sets("history.heads=3")], r"history.heads = 3 does not divide tables.dim = 32"),
        (
            ["hisac", *sets("inputs.user=['aeg']")],
            r"inputs.user: the data set has no feature 'aeg'",
        ),
        (["hisac", "--planner", "2xcpu"], r"made for 2 ranks, this job has 1"),
        (["hisac", "--planner", "1xcpu", "--plan", "p.json"], r"give --plan or --planner"),
        (["hisac", "--plan", "nowhere.json"], r"nowhere.json: no such plan"),
    ],
    ids=str,
)
def test_refusals_leave_nothing_behind(
    small_data: PreparedData, tmp_path: Path, arguments: list[str], message: str
) -> None:
    model, *rest = arguments
    with pytest.raises(UserError, match=message):
        invoke("train", model, small_data.root, "--out", tmp_path / "run", *rest)
    assert not (tmp_path / "run").exists()


def test_data_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a prepared data set"):
        invoke("train", "hisac", tmp_path, "--out", tmp_path / "run")


def test_evaluate_refusals(trained: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([tmp_path], r"not a run \(config.toml is missing\)"),
        ([trained, "--split", "tset"], r"--split tset: no such split; did you mean 'test'"),
        ([trained, "--checkpoint", "7"], r"no checkpoint '7'; there are steps"),
        ([trained, "--against", tmp_path], r"not a run"),
    ):
        with pytest.raises(UserError, match=message):
            invoke("evaluate", *arguments)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_shows_examples(command: str) -> None:
    text = invoke(command, "--help")
    assert "torchrun --nproc_per_node 2" in text
