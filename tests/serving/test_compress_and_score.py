"""A trained run, compressed and scored: the same numbers as evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training import one_process, predict_run, read_predictions, small_config, torchrun, train_run

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.serving.cache import Cache
from hisac_rec.serving.compress import Compressed, compress_run
from hisac_rec.serving.score import SCORES, score_run
from hisac_rec.train.run import RunFolder


@pytest.fixture(scope="module")
def run(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HiSAC, two epochs, evaluated on test."""
    out = tmp_path_factory.mktemp("serving") / "run"
    train_run(small_config("train.epochs=2", "history.newest=3"), small_data, out)
    predict_run(out, small_data)
    return out


def compress(run: Path, data: PreparedData, out: Path, **options: Any) -> Compressed:
    with one_process() as ranks:
        return compress_run(RunFolder(run), data, ranks, out, **options)


def score(run: Path, data: PreparedData, out: Path, **options: Any) -> dict[str, np.ndarray]:
    with one_process() as ranks:
        score_run(RunFolder(run), data, ranks, out, **options)
    return read_predictions(out / "predictions")


@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-6), ("fp16", 1e-3), ("int8", 1e-2)])
def test_a_cache_of_every_request_scores_as_evaluation_does(
    run: Path, small_data: PreparedData, tmp_path: Path, precision: Any, close: float
) -> None:
    evaluated = read_predictions(RunFolder(run).predictions("test"))
    done = compress(run, small_data, tmp_path / "c", at="requests", precision=precision)
    assert done.histories == small_data.manifest.splits["test"].requests
    assert done.error <= {"fp32": 0.0, "fp16": 2**-11, "int8": 1 / 127}[precision]
    assert (done.error == 0) == (precision == "fp32")
    scored = score(run, small_data, tmp_path / "s", cache=tmp_path / "c")
    for key in ("user", "request", "item", "label", "history_length"):
        assert np.array_equal(scored[key], evaluated[key]), key
    np.testing.assert_allclose(scored["logit"], evaluated["logit"], atol=close)


@pytest.mark.parametrize(
    "history",
    ['history={method="kmeans", agents=4}', "history.votes={view=-0.5,like=2}"],
    ids=["kmeans", "votes against"],
)
def test_any_method_that_keeps_agents_can_be_cached(
    small_data: PreparedData, tmp_path: Path, history: str
) -> None:
    train_run(small_config(history), small_data, tmp_path / "run")
    evaluated = predict_run(tmp_path / "run", small_data)
    compress(tmp_path / "run", small_data, tmp_path / "c", at="requests")
    scored = score(tmp_path / "run", small_data, tmp_path / "s", cache=tmp_path / "c")
    np.testing.assert_allclose(scored["logit"], evaluated["logit"], atol=1e-6)


def test_what_is_there_is_not_compressed_again(
    run: Path, small_data: PreparedData, tmp_path: Path
) -> None:
    users = small_data.manifest.splits["test"].users
    whole = compress(run, small_data, tmp_path / "c")
    assert (whole.histories, whole.held) == (users, 0)
    before = read_predictions_of_all(run, small_data, tmp_path)
    again = compress(run, small_data, tmp_path / "c")
    assert (again.histories, again.held) == (0, users)
    # A run that was killed in the midst: some of its parts are there, one is half written.
    (part,) = (tmp_path / "c").glob("part-*.arrow")
    rows = pa.ipc.open_file(str(part)).read_all()
    with pa.ipc.new_file(str(part), rows.schema) as file:
        file.write_table(rows.slice(0, 50))
    (tmp_path / "c" / ".part-000001-00000.arrow.partial").write_bytes(b"half")
    rest = compress(run, small_data, tmp_path / "c")
    assert (rest.histories, rest.held) == (users - 50, 50)
    assert not list((tmp_path / "c").glob(".part*"))
    after = read_predictions_of_all(run, small_data, tmp_path)
    assert np.array_equal(before["logit"], after["logit"])


def read_predictions_of_all(run: Path, data: PreparedData, folder: Path) -> dict[str, np.ndarray]:
    return score(run, data, folder / "scores", cache=folder / "c")


def test_users_with_new_events_are_compressed_anew(
    run: Path, small_data: PreparedData, tmp_path: Path
) -> None:
    """First as of the first request, then as of the last, into a cache that says the same."""
    compress(run, small_data, tmp_path / "c", at="first")
    manifest = tmp_path / "c" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"first"', '"last"'))
    first = Cache(tmp_path / "c")
    grown = compress(run, small_data, tmp_path / "c")
    both = Cache(tmp_path / "c")
    assert len(both) == len(first) + grown.histories
    assert grown.histories
    assert grown.histories + grown.held == len(first)
    late = np.full(len(first), np.iinfo(np.int64).max)
    newest = both.newest(first.keys.user, late)
    changed = both.keys.seen[newest] != first.keys.seen
    assert int(changed.sum()) == grown.histories
    assert (both.keys.seen[newest] >= first.keys.seen).all()


@pytest.mark.distributed
def test_two_ranks_compress_what_one_does(
    run: Path, small_data: PreparedData, tmp_path: Path
) -> None:
    words = ("-m", "hisac_rec")
    of = (run, "--data", small_data.root)
    torchrun(*words, "compress", *of, "--out", tmp_path / "c", "--at", "requests")
    assert len(Cache(tmp_path / "c")) == small_data.manifest.splits["test"].requests
    assert {p.name[-11:-6] for p in (tmp_path / "c").glob("part-*")} == {"00000", "00001"}
    evaluated = read_predictions(RunFolder(run).predictions("test"))
    scored = score(run, small_data, tmp_path / "s", cache=tmp_path / "c")
    np.testing.assert_allclose(scored["logit"], evaluated["logit"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_score_what_one_does(run: Path, small_data: PreparedData, tmp_path: Path) -> None:
    compress(run, small_data, tmp_path / "c", at="requests")
    of = (run, "--data", small_data.root, "--cache", tmp_path / "c")
    torchrun("-m", "hisac_rec", "score", *of, "--out", tmp_path / "s")
    evaluated = read_predictions(RunFolder(run).predictions("test"))
    scored = read_predictions(tmp_path / "s" / "predictions")
    np.testing.assert_allclose(scored["logit"], evaluated["logit"], atol=1e-5)


def test_a_file_of_requests(run: Path, small_data: PreparedData, tmp_path: Path) -> None:
    """The requests of the split, written as a file in raw ids and another order."""
    evaluated = read_predictions(RunFolder(run).predictions("test"))
    users = small_data.read_parquet("vocab/user.parquet")["value"].to_numpy(zero_copy_only=False)
    names = small_data.items["raw_id"].to_numpy(zero_copy_only=False)
    numbers, first = np.unique(evaluated["request"], return_index=True)
    rows = [
        {
            "user": users[evaluated["user"][at]],
            "time": int(evaluated["time"][at]),
            "items": names[evaluated["item"][evaluated["request"] == number]].tolist(),
        }
        for number, at in zip(numbers, first, strict=True)
    ][::-1]
    path = tmp_path / "requests.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    score(run, small_data, tmp_path / "s", requests=path, top=2)
    scores = pq.read_table(tmp_path / "s" / SCORES).to_pylist()
    wanted: dict[tuple[str, int], list[tuple[float, str]]] = {}
    for user, time, item, probability in zip(
        *(evaluated[name] for name in ("user", "time", "item", "score")), strict=True
    ):
        wanted.setdefault((users[user], int(time)), []).append((float(probability), names[item]))
    assert len(scores) == sum(min(2, len(of)) for of in wanted.values())
    for row in scores:
        of = sorted(wanted[row["user"], row["time"]], reverse=True)
        assert rows[row["request"]]["user"] == row["user"]
        assert row["score"] == pytest.approx(of[row["rank"] - 1][0], abs=1e-6)
        assert any(
            row["item"] == item and row["score"] == pytest.approx(probability, abs=1e-6)
            for probability, item in of
        )


def test_what_does_not_fit_is_refused(run: Path, small_data: PreparedData, tmp_path: Path) -> None:
    compress(run, small_data, tmp_path / "c")
    with pytest.raises(UserError, match=r"manifest.json: a cache of something else: precision = "):
        compress(run, small_data, tmp_path / "c", precision="int8")
    other = tmp_path / "other"
    train_run(small_config("train.seed=1", "history.newest=3"), small_data, other)
    with pytest.raises(UserError, match=r"a cache of another checkpoint or other data: run = "):
        score(other, small_data, tmp_path / "s", cache=tmp_path / "c")
    plain = tmp_path / "plain"
    train_run(small_config('history={method="none"}'), small_data, plain)
    with pytest.raises(UserError, match=r"history.method = 'none' keeps no agents"):
        compress(plain, small_data, tmp_path / "n")


def test_a_bad_file_of_requests_names_the_row(
    run: Path, small_data: PreparedData, tmp_path: Path
) -> None:
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table({"user": ["1"], "items": [["1"]]}), path)
    with pytest.raises(UserError, match=r"r.parquet: column 'time' is missing; a file of requests"):
        score(run, small_data, tmp_path / "s", requests=path)
    unknown = {"user": ["1", "nobody"], "time": [5, 5], "items": [["1"], ["2"]]}
    pq.write_table(pa.table(unknown), path)
    with pytest.raises(UserError, match=r"r.parquet: row 1: user 'nobody' has no history in the"):
        score(run, small_data, tmp_path / "s", requests=path)
    pq.write_table(pa.table({"user": ["1"], "time": [5], "items": ["1"]}), path)
    with pytest.raises(UserError, match=r"column 'items' is of type string; expected lists"):
        score(run, small_data, tmp_path / "s", requests=path)
