"""Ranks are killed, stopped and asked to end; disks fill; the run tells, and goes on as if not."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from drills import Drill, assert_each_once, children, small_disk
from training import logged, small_config

from hisac_rec.data.contract import PreparedData
from hisac_rec.train.run import RunFolder

pytestmark = pytest.mark.distributed

QUICK = ("train.log_every=5", "train.checkpoint_every=5", "train.early_stop=0")

MakeDrill = Callable[..., Drill]


@pytest.fixture
def drill(small_data: PreparedData, tmp_path: Path) -> Iterator[MakeDrill]:
    made: list[Drill] = []

    def make(*overrides: str) -> Drill:
        made.append(Drill(small_data, tmp_path, small_config(*QUICK, *overrides)))
        return made[-1]

    yield make
    for one in made:
        one.clean()


@pytest.fixture(scope="module")
def undisturbed(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Drill:
    """The run that nothing happens to."""
    one = Drill(small_data, tmp_path_factory.mktemp("undisturbed"), small_config(*QUICK))
    one.finish()
    assert_each_once(one)
    return one


def final_auc(drill: Drill) -> float:
    return list(logged(drill.run, "valid", "auc").values())[-1]


def test_a_killed_rank(drill: MakeDrill, undisturbed: Drill) -> None:
    """The other one says which, and ends at once; the run goes on from its last checkpoint."""
    one = drill()
    one.start()
    one.wait_for(13)
    one.ranks[1].send(signal.SIGKILL)
    assert one.ranks[1].exit_code() == -signal.SIGKILL
    assert one.ranks[0].exit_code() == 76, one.text()
    said = one.ranks[0].text()
    assert "a rank is gone, killed or crashed: rank 1 (host " in said
    assert "Traceback" not in said
    summary = one.summary()
    assert summary["outcome"] == "lost a rank"
    assert summary["starts"][-1]["step"] >= 13
    one.finish("--resume")
    summary = one.summary()
    assert (summary["outcome"], summary["resumes"]) == ("finished", 1)
    # That of step 10 may have been on its way to the disk; before it, that of step 5 was there.
    assert summary["starts"][-1]["resumed_from"] >= 5
    assert_each_once(one)
    assert final_auc(one) == pytest.approx(final_auc(undisturbed), abs=1e-4)


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.drill)],
    ids=lambda n: n.name,
)
def test_a_signal_saves_and_ends(
    drill: MakeDrill, undisturbed: Drill, number: signal.Signals
) -> None:
    """One rank has had it: all finish the same step, save, and end alike."""
    one = drill("train.checkpoint_every=0")
    one.start()
    one.wait_for(7)
    one.ranks[1].send(number)
    assert one.exit_codes() == [75, 75], one.text()
    (step,) = RunFolder(one.run).checkpoints().steps()
    assert 7 <= step < 20
    assert f"asked to end by a signal: saved {one.run}/checkpoints/step-{step:08d}" in one.text()
    summary = one.summary()
    assert summary["outcome"] == "interrupted"
    assert summary["last_checkpoint"].endswith(f"step-{step:08d}")
    one.finish("--resume")
    assert_each_once(one)
    assert final_auc(one) == pytest.approx(final_auc(undisturbed), abs=1e-4)


def test_a_rank_that_stops(drill: MakeDrill) -> None:
    """A warning, then an end that names it and says what it was doing; no silent hang."""
    one = drill("train.timeout_minutes=0.1")
    one.start()
    one.wait_for(7)
    one.ranks[1].send(signal.SIGSTOP)
    assert one.ranks[0].exit_code() == 76
    said = one.ranks[0].text()
    for expected in (
        r"the others have waited \d s \('[a-z ]+'\): rank 1 \(host ",
        r"waited 0\.1 minutes \(train\.timeout_minutes\) for a rank: rank 1 \(host \S+, process "
        rf"{one.ranks[1].pid}\) was last seen after step \d+, epoch 1: '[a-z ]+' for \d+ s",
        "its process is stopped or gone, or its host is",
    ):
        assert re.search(expected, said), said
    summary = one.summary()
    assert summary["outcome"] == "lost a rank"
    assert "rank 1" in summary["error"]


@pytest.mark.drill
def test_a_slow_rank_is_waited_for(drill: MakeDrill, undisturbed: Drill) -> None:
    """Stopped for less than the time-out: a warning, and nothing is lost."""
    one = drill("train.timeout_minutes=1")
    one.start()
    one.wait_for(7)
    one.ranks[1].send(signal.SIGSTOP)
    one.wait_until(lambda: "the others have waited" in one.ranks[0].text(), "a warning")
    one.ranks[1].send(signal.SIGCONT)
    assert one.exit_codes() == [0, 0]
    assert_each_once(one)
    assert final_auc(one) == pytest.approx(final_auc(undisturbed), abs=1e-4)


def test_a_killed_loader_worker(drill: MakeDrill) -> None:
    """As the kernel does where memory is short."""
    one = drill("loader.workers=1", "train.epochs=50")
    one.start()
    one.wait_for(3)
    (worker,) = children(one.ranks[1].pid)
    worker.kill()
    assert one.ranks[1].exit_code() == 2
    assert one.ranks[0].exit_code() == 76
    wanted = r"a loader process \(loader\.workers\) was killed .*loader\.shuffle_requests"
    assert re.search(wanted, one.ranks[1].text()), one.ranks[1].text()
    assert re.search(f"rank 1 failed: {wanted}", one.ranks[0].text()), one.ranks[0].text()


def test_the_checkpoints_are_deleted_under_the_run(drill: MakeDrill, undisturbed: Drill) -> None:
    """Where none is being written just then, the run does not care and writes new ones."""
    one = drill("train.checkpoint_every=12")
    one.start()
    first = one.run / "checkpoints" / "step-00000012" / "manifest.json"
    one.wait_until(first.exists, "a checkpoint")
    shutil.rmtree(one.run / "checkpoints")
    assert one.exit_codes() == [0, 0], one.text()
    run = RunFolder(one.run)
    assert run.checkpoints().find("best") == run.checkpoints().find("last")
    assert final_auc(one) == pytest.approx(final_auc(undisturbed), abs=1e-4)


def test_the_disk_is_full(drill: MakeDrill, undisturbed: Drill) -> None:
    """A save that does not fit: a clear end, no half checkpoint; with room it goes on."""
    one = drill("train.epochs=2", "train.keep_checkpoints=1")
    with small_disk(one.run, 8):
        one.start()
        first = one.run / "checkpoints" / "step-00000005" / "manifest.json"
        one.wait_until(first.exists, "a checkpoint")
        with suppress(OSError):
            (one.run / "ballast").write_bytes(b"\0" * (8 << 20))
        codes = one.exit_codes()
        assert 2 in codes, one.text()
        assert set(codes) <= {2, 76}
        assert re.search(r"the checkpoint could not be written: .*No space left", one.text())
        assert "Traceback" not in one.text()
        kept = RunFolder(one.run).checkpoints()
        assert kept.steps()
        (one.run / "ballast").unlink()
        one.finish("--resume")
        assert_each_once(one)


def test_a_loss_that_is_not_finite(drill: MakeDrill) -> None:
    one = drill("train.dense_lr=1e30", "train.clip_norm=0")
    one.start()
    codes = one.exit_codes()
    assert 2 in codes
    assert set(codes) <= {2, 76}
    assert re.search(r"the loss is not finite at step \d on rank \d: \d+ requests", one.text())
    assert one.summary()["outcome"] in ("failed", "lost a rank")
    assert RunFolder(one.run).checkpoints().steps() == []
