from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hisac_rec.errors import UserError
from hisac_rec.evaluation.parts import PREDICTION_SCHEMA, sigmoid
from hisac_rec.evaluation.predictions import (
    PredictionWriter,
    check_same_rows,
    read_predictions,
)


def columns(n: int = 12, seed: int = 0, first_request: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "user": rng.integers(1, 5, n),
        "time": rng.integers(0, 100, n),
        "item": rng.integers(1, 9, n),
        "label": rng.integers(0, 2, n).astype(float),
        "logit": rng.normal(size=n),
        "history_length": rng.integers(0, 50, n),
        "request": first_request + np.arange(n) // 3,
    }


def write(folder: Path, rank: int = 0, world_size: int = 1, run: str = "", **changes) -> Path:
    values = columns(first_request=1000 * rank, seed=rank) | changes
    with PredictionWriter(folder, rank=rank, world_size=world_size, run=run) as writer:
        writer.write(**values)
    return writer.path


def rewrite(path: Path, name: str, values: pa.Array) -> None:
    """Replace one column of a file behind the writer's back."""
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(name), name, values), path)


def test_round_trip_is_ordered_and_exact(tmp_path):
    given = columns()
    with PredictionWriter(tmp_path, fingerprint="abc") as writer:
        for part in np.array_split(np.arange(12), 3):
            writer.write(**{name: torch.from_numpy(v[part]) for name, v in given.items()})
    found = read_predictions(tmp_path)
    order = np.lexsort([given[k] for k in ("request", "label", "item", "time", "user")])
    assert writer.rows == len(found) == 12
    assert found.fingerprint == "abc"
    for name, values in given.items():
        kept = getattr(found, name)
        assert kept.dtype == PREDICTION_SCHEMA.field(name).type.to_pandas_dtype()
        np.testing.assert_array_equal(kept, values[order].astype(kept.dtype))
    np.testing.assert_allclose(found.score, sigmoid(found.logit), rtol=1e-6)


def test_parts_of_many_ranks_read_as_the_file_of_one(tmp_path):
    whole = columns(30)
    write(tmp_path / "one", **whole)
    requests = np.unique(whole["request"])
    for rank in range(3):  # the third rank has no request
        mine = np.isin(whole["request"], requests[rank::2] if rank < 2 else [])
        write(tmp_path / "many", rank, 3, **{name: v[mine] for name, v in whole.items()})
    one, many = read_predictions(tmp_path / "one"), read_predictions(tmp_path / "many")
    check_same_rows(one, many, ("one", "many"))
    np.testing.assert_array_equal(one.logit, many.logit)


def test_oracle_column_is_kept(tmp_path):
    with PredictionWriter(tmp_path, oracle=True) as writer:
        writer.write(**columns(), probability=np.full(12, 0.25))
    assert (read_predictions(tmp_path).probability == 0.25).all()
    with pytest.raises(ValueError, match="oracle=True"), PredictionWriter(tmp_path) as writer:
        writer.write(**columns(), probability=np.full(12, 0.25))


def test_a_failed_block_leaves_the_old_file_and_no_other(tmp_path):
    path = write(tmp_path)
    before = path.read_bytes()

    def fail_halfway():
        with PredictionWriter(tmp_path) as writer:
            writer.write(**columns(seed=5))
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_rank_zero_removes_parts_of_another_world_size(tmp_path):
    for rank in range(3):
        write(tmp_path, rank, 3)
    write(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert len(read_predictions(tmp_path)) == 12


def test_a_diverged_model_is_named_while_writing(tmp_path):
    logit = np.zeros(12)
    logit[4] = np.nan
    message = r"predicted nan for request 1, user \d+, item \d+ \(1 of 12 rows.*diverged"
    with pytest.raises(UserError, match=message):
        write(tmp_path, logit=logit)
    assert list(tmp_path.iterdir()) == []


def test_columns_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="different shapes"):
        write(tmp_path, item=np.arange(3))


def test_missing_column(tmp_path):
    path = write(tmp_path)
    table = pq.read_table(path)
    pq.write_table(table.rename_columns({"history_length": "history_len"}), path)
    with pytest.raises(UserError, match=r"'history_length' is missing.*mean 'history_len'"):
        read_predictions(path)


def test_wrong_type(tmp_path):
    path = write(tmp_path)
    rewrite(path, "item", pa.array(["a"] * 12))
    with pytest.raises(UserError, match="column 'item' is string, expected int32"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("logit", float("nan"), "logit is nan, expected a finite number"),
        ("score", float("nan"), "score is nan, expected a number from 0 to 1"),
        ("score", 1.5, "score is 1.5, expected a number from 0 to 1"),
        ("label", 0.5, "label is 0.5, expected 0 or 1"),
        ("history_length", -1, "history_length is -1, expected 0 or more"),
    ],
)
def test_bad_value_names_its_row(tmp_path, name, value, expected):
    path = write(tmp_path)
    values = pq.read_table(path)[name].to_numpy().copy()
    values[7] = value
    rewrite(path, name, pa.array(values))
    with pytest.raises(UserError, match=rf"row 7 \(request 2, user \d+, item \d+\): {expected}"):
        read_predictions(path)


def test_score_that_is_not_the_sigmoid(tmp_path):
    path = write(tmp_path)
    rewrite(path, "score", pa.array(np.full(12, 0.999, np.float32)))
    with pytest.raises(UserError, match="expected the sigmoid of the row's logit"):
        read_predictions(path)


def test_null_value(tmp_path):
    path = write(tmp_path)
    rewrite(path, "label", pa.array([1.0] * 3 + [None] * 9, pa.float32()))
    with pytest.raises(UserError, match="row 3: label is null"):
        read_predictions(path)


def test_empty_file(tmp_path):
    write(tmp_path, **{name: v[:0] for name, v in columns().items()})
    with pytest.raises(UserError, match="no prediction at all"):
        read_predictions(tmp_path)


def test_damaged_file(tmp_path):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=rf"{path.name}: damaged Parquet file"):
        read_predictions(path)


def test_damaged_data_page(tmp_path):
    path = write(tmp_path)
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged Parquet file"):
        read_predictions(path)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        read_predictions(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no Parquet file"):
        read_predictions(tmp_path)
    with pytest.raises(UserError, match="no file of predictions"):
        read_predictions([])


def test_missing_part(tmp_path):
    write(tmp_path, 0, 3)
    write(tmp_path, 2, 3)
    with pytest.raises(UserError, match="part of rank 1 of 3 is missing"):
        read_predictions(tmp_path)


def test_parts_of_two_runs(tmp_path):
    write(tmp_path, 0, 2, run="step 100")
    write(tmp_path, 1, 2, run="step 200")
    with pytest.raises(UserError, match="different runs"):
        read_predictions(tmp_path)


def test_parts_of_two_world_sizes(tmp_path):
    write(tmp_path, 0, 1)
    write(tmp_path, 1, 2)
    with pytest.raises(UserError, match="parts of runs with 1 and 2 ranks"):
        read_predictions(tmp_path)


def test_request_predicted_by_two_ranks(tmp_path):
    write(tmp_path, 0, 2)
    write(tmp_path, 1, 2, request=np.full(12, 3))
    with pytest.raises(UserError, match=r"request 3 is in part-00000.* and in part-00001"):
        read_predictions(tmp_path)


def test_predictors_of_other_rows_are_refused(tmp_path):
    label = columns()["label"]
    paths = [write(tmp_path / "a"), write(tmp_path / "b", label=1 - label)]
    first, other = map(read_predictions, paths)
    with pytest.raises(UserError, match=r"'a' and 'b' predicted different rows: .* has label"):
        check_same_rows(first, other, ("a", "b"))
    short = read_predictions(write(tmp_path / "c", **{k: v[:9] for k, v in columns().items()}))
    with pytest.raises(UserError, match="'a' has 12 predictions and 'c' 9"):
        check_same_rows(first, short, ("a", "c"))
