"""An exported model and a store give the scores of evaluation, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training import one_process

from hisac_rec.errors import UserError
from hisac_rec.scorer import Event, LmdbStore, Scorer
from hisac_rec.scorer.artefact import Artefact
from hisac_rec.scorer.store import fill_store
from hisac_rec.serving.cache import Cache
from hisac_rec.serving.compress import compress_run
from hisac_rec.serving.export import export_run
from hisac_rec.train.run import RunFolder


@pytest.fixture
def scorer(served: Any, tmp_path: Path) -> Scorer:
    return Scorer.load(served.root / "model", served.store(tmp_path / "store"))


def test_scores_are_those_of_evaluation(served: Any, scorer: Scorer) -> None:
    for user, time, items, expected in served.last_requests(40):
        np.testing.assert_allclose(scorer.score(user, items, time=time), expected, atol=1e-6)


def test_scores_of_open_vocabularies_are_those_of_evaluation(
    served_openly: Any, tmp_path: Path
) -> None:
    """The exporter says which rows an id reads; the scorer knows nothing of how they were found."""
    scorer = Scorer.load(served_openly.root / "model", served_openly.store(tmp_path / "store"))
    assert {"tables/item.rows.npy", "tables/user.rows.npy"} <= scorer.artefact.manifest.files.keys()
    for user, time, items, expected in served_openly.last_requests(40):
        np.testing.assert_allclose(scorer.score(user, items, time=time), expected, atol=1e-6)


def test_scores_with_votes_against_are_those_of_evaluation(
    served_with_dislikes: Any, tmp_path: Path
) -> None:
    """Cache, store and exported program carry what a history rejects."""
    served = served_with_dislikes
    store = served.store(tmp_path / "store")
    scorer = Scorer.load(served.root / "model", store)
    assert scorer.artefact.manifest.format == 4
    rejected = 0
    for user, time, items, expected in served.last_requests(40):
        rejected += len(scorer.state(user).against)
        np.testing.assert_allclose(scorer.score(user, items, time=time), expected, atol=1e-6)
        unknown = scorer.score("nobody has this name", items, time=time)
        assert np.isfinite(unknown).all()
    assert rejected > 40


def test_scores_of_views_are_those_of_evaluation(served_by_views: Any, tmp_path: Path) -> None:
    """Each user's candidates have the codes that his group of users reads."""
    scorer = Scorer.load(served_by_views.root / "model", served_by_views.store(tmp_path / "store"))
    assert scorer.artefact.manifest.views == 3
    assert "users/views.npy" in scorer.artefact.manifest.files
    for user, time, items, expected in served_by_views.last_requests(40):
        np.testing.assert_allclose(scorer.score(user, items, time=time), expected, atol=1e-6)


def test_many_threads_score_at_once(served: Any, scorer: Scorer) -> None:
    asked = served.last_requests(20) * 3
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda one: scorer.score(one[0], one[2], time=one[1]), asked)
        for scores, (*_, expected) in zip(found, asked, strict=True):
            np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_who_and_what_is_unknown_is_scored_all_the_same(served: Any, scorer: Scorer) -> None:
    (user, time, items, _), *_ = served.last_requests(1)
    someone = scorer.score("nobody has this name", [*items, "nor this"], time=time)
    assert np.isfinite(someone).all()
    known = scorer.score(user, [*items, "nor this"], time=time)
    assert not np.allclose(someone, known)
    assert scorer.score(user, [], time=time).shape == (0,)


def test_new_events_count_at_once(served: Any, scorer: Scorer) -> None:
    """A history compressed as of the first request, told of what happened until the last one,
    reads the same newest events and length as one compressed as of the last."""
    run = RunFolder(served.root / "run")
    with one_process() as ranks:
        compress_run(run, served.data, ranks, served.root / "early", at="first")
    store = LmdbStore(served.root / "early_store")
    early = Cache(served.root / "early")
    fill_store(store, early)
    late = Scorer(Artefact(served.root / "model"), store)
    changed = 0
    for user, time, items, _ in served.last_requests(30):
        wanted, before = scorer.state(user), late.state(user)
        new = wanted.seen - before.seen
        assert new >= 0
        if not new or new > len(wanted.newest_item):
            continue
        changed += 1
        events = [
            Event(served.names[item], int(at), "")
            for item, at in zip(wanted.newest_item[-new:], wanted.newest_time[-new:], strict=True)
        ]
        late.update_history(user, events)
        after = late.state(user)
        assert after.seen == wanted.seen
        for name in ("newest_item", "newest_time"):
            assert np.array_equal(getattr(after, name), getattr(wanted, name))
        assert np.array_equal(after.path, before.path)  # the agents wait
        assert len(late.score(user, items, time=time)) == len(items)
    assert changed > 3
    # Compressed again, the events are in the agents and no longer beside them.
    fill_store(store, Cache(served.root / "cache"))
    for user, time, items, expected in served.last_requests(30):
        np.testing.assert_allclose(late.score(user, items, time=time), expected, atol=1e-6)


def test_what_does_not_fit_is_refused(served: Any, scorer: Scorer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"event type 'clik': the data set has no such type"):
        scorer.update_history("1", [Event("1", 5, "clik")])
    with pytest.raises(UserError, match="a user's id has 1 to 511 bytes, this one 600"):
        scorer.update_history("u" * 600, [Event("1", 5)])
    empty = LmdbStore(tmp_path / "empty")
    with pytest.raises(UserError, match="the store is empty; fill it with 'hisac-rec store"):
        Scorer(scorer.artefact, empty)
    with pytest.raises(UserError, match="no store of compressed histories"):
        LmdbStore(tmp_path / "absent", read_only=True)
    with pytest.raises(UserError, match=r"there already; choose another --out"):
        export_run(RunFolder(served.root / "run"), served.data, served.root / "model")


@pytest.mark.parametrize("name", ["candidate.pt2", "tables/item.npy", "items/codes.npy"])
def test_a_damaged_file_is_named(served: Any, tmp_path: Path, name: str) -> None:
    copy = copy_of(served.root / "model", tmp_path / "model")
    damaged = bytearray((copy / name).read_bytes())
    damaged[len(damaged) // 2] ^= 4
    (copy / name).write_bytes(damaged)
    with pytest.raises(UserError, match=f"{name}: not what was exported"):
        Artefact(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name}: missing"):
        Artefact(copy)


def test_a_self_test_that_fails_is_an_error(served: Any, tmp_path: Path) -> None:
    copy = copy_of(served.root / "model", tmp_path / "model")
    recorded: dict[str, Any] = dict(np.load(copy / "selftest.npz"))
    recorded["1.logits"] = recorded["1.logits"] + 0.01
    np.savez(copy / "selftest.npz", **recorded)
    with pytest.raises(UserError, match=r"the self-test is off by 0.01 in a logit"):
        Artefact(copy, verify=False).self_test()


def test_nothing_of_the_training_stack_is_imported(served: Any, tmp_path: Path) -> None:
    served.store(tmp_path / "store").close()
    user, time, items, expected = served.last_requests(1)[0]
    model, store = str(served.root / "model"), str(tmp_path / "store")
    program = f"""
import sys
from pathlib import Path
from hisac_rec.scorer import LmdbStore, Scorer
scorer = Scorer.load(Path({model!r}), LmdbStore(Path({store!r})))
print(scorer.score({user!r}, {items!r}, time={time}).tolist())
print([name for name in ("torchrec", "fbgemm_gpu", "duckdb", "sklearn") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    scores, imported = done.stdout.splitlines()
    np.testing.assert_allclose(eval(scores), expected, atol=1e-6)
    assert imported == "[]"


@pytest.mark.parametrize(("precision", "close"), [("fp16", 1e-3), ("int8", 1e-2)])
def test_tables_in_fewer_bits(served: Any, tmp_path: Path, precision: Any, close: float) -> None:
    run = RunFolder(served.root / "run")
    with one_process():
        export_run(run, served.data, tmp_path / "model", precision=precision, compiled=False)
    scorer = Scorer.load(tmp_path / "model", served.store(tmp_path / "store"))
    for user, time, items, expected in served.last_requests(10):
        np.testing.assert_allclose(scorer.score(user, items, time=time), expected, atol=close)


@pytest.mark.slow
def test_the_compiled_program_computes_the_same(served: Any, tmp_path: Path) -> None:
    run = RunFolder(served.root / "run")
    with one_process():
        export_run(run, served.data, tmp_path / "model", compiled=True)
    scorer = Scorer.load(tmp_path / "model", served.store(tmp_path / "store"))
    assert scorer.artefact.compiled
    for user, time, items, expected in served.last_requests(20):
        np.testing.assert_allclose(scorer.score(user, items, time=time), expected, atol=1e-6)


def copy_of(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return to
