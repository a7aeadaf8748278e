from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from builders import write_prepared
from typer.testing import CliRunner

from hisac_rec.cli.plan import run
from hisac_rec.errors import UserError
from hisac_rec.planning.plan_io import load_plan
from hisac_rec.planning.units import GIB, human_bytes
from hisac_rec.semantic.config import SemanticIdConfig
from hisac_rec.semantic.fit import fit_semantic_ids

app = typer.Typer()
app.command()(run)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = np.random.default_rng(0).normal(size=(80, 6))
    prepared = write_prepared(
        tmp_path_factory.mktemp("plan") / "data", items=80, users=20, content=content
    )
    fit_semantic_ids(prepared, SemanticIdConfig(source="content", codes=[4, 3]), "cpu")
    return prepared.root


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_it_prints_and_saves_the_plan(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    shown = call("hisac", data, "--planner", "2xcpu", "--out", file)
    plan = load_plan(file)
    assert plan.world_size == 2
    assert {name for _, name, _ in plan.tables()} >= {"item", "user", "sid1", "sid2"}
    for _, name, table in plan.tables():
        line = next(line for line in shown.splitlines() if line.strip().startswith(f"{name} "))
        assert f"{table.rows:,} x {table.dim}" in line
        assert table.sharding_type in line


def test_a_sample_stands_for_a_billion_items_on_128_gpus(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    shown = call(
        *("hisac", data, "-p", "128xh100", "--items", 10**9, "--users", 3 * 10**8),
        *("--history", 10_000, "--candidates", 10, "--requests-per-rank", 64),
        *("--set", "tables.dim=128", "--out", file),
    )
    plan = load_plan(file)
    item = next(table for _, name, table in plan.tables() if name == "item")
    assert (item.rows, item.dim) == (10**9, 128)
    assert sum(item.pooling_factors) == 10_010
    assert item.ranks == list(range(128))
    assert plan.requests_per_rank == 64
    assert "16 hosts x 8 cuda, 64 requests per rank" in shown
    # 79 GiB less a fifth, less the dense part, three batches and the activations of 640,640 tokens
    assert plan.footprint.dense > 0
    assert plan.footprint.batches > 3 * 64 * 10_010 * 8
    assert plan.footprint.activations > plan.footprint.batches
    hbm = next(line for line in shown.splitlines() if line.strip().startswith("HBM"))
    assert human_bytes(79 * 0.8 * GIB - plan.footprint.total) in hbm
    assert "besides tables, on every rank: dense part" in shown


def test_rules_of_the_planner_can_be_overridden(data: Path) -> None:
    shown = call(
        *("hisac", data, "-p", "2xcpu"),
        *("--planner-set", 'defaults.sharding_types=["column_wise"]'),
    )
    assert "column_wise" in shown
    assert "row_wise" not in shown


def test_requests_per_rank_follow_the_token_budget(data: Path, tmp_path: Path) -> None:
    counts = []
    for tokens in (2_000, 8_000):
        file = tmp_path / f"{tokens}.json"
        budget = f"loader.batch_tokens={tokens}"
        most = ("--set", "loader.max_candidates=2048")
        call("hisac", data, "-p", "1xcpu", "--set", budget, *most, "--out", file)
        counts.append(load_plan(file).requests_per_rank)
    assert counts[1] == pytest.approx(4 * counts[0], rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hisac", "-p", "3xcpu"], r"3xcpu: neither a file nor the name .* did you mean '.xcpu'"),
        (["hisak", "-p", "2xcpu"], r"hisak: .* did you mean 'hisac'"),
        (
            ["hisac", "-p", "2xcpu", "--planner-set", "tables.itme.min_partition=8"],
            r'"itme"\] matches no table of the model; did you mean \'item\'',
        ),
        (
            ["hisac", "-p", "1xh100", "--items", "1000000000", "--set", "tables.dim=128"],
            r"no sharding plan: the tables need at least(.|\n)*topology\.hosts = \d \(now 1\)",
        ),
    ],
)
def test_mistakes_are_named(data: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(arguments[0], data, *arguments[1:])


def test_two_clusters_side_by_side_and_a_picture(data: Path, tmp_path: Path) -> None:
    shown = call(
        *("hisac", data, "-p", "1xcpu", "--compare", "2xcpu"),
        *(
            "--picture",
            tmp_path / "plan.svg",
            "--planner-set",
            'defaults.sharding_types=["table_wise"]',
        ),
    )
    lines = [line.split() for line in shown.splitlines()]
    assert ["table", "1xcpu", "2xcpu"] in lines
    assert ["ranks", "1", "2"] in lines
    item = [" ".join(line) for line in lines if line[:1] == ["item"]][-1]
    assert "table_wise, fused, ranks 0," in item
    assert "ranks 0-1," in item
    drawn = (tmp_path / "plan.svg").read_text()
    for word in ("item", "GiB", "ms a step"):
        assert word in drawn
    again = tmp_path / "again.svg"
    call(*("hisac", data, "-p", "1xcpu", "--picture", again))
    with pytest.raises(UserError, match=r"plan\.nonsense: .*end it in \.png or \.svg"):
        call("hisac", data, "-p", "1xcpu", "--picture", tmp_path / "plan.nonsense")
    assert {path.name for path in tmp_path.iterdir()} == {"plan.svg", "again.svg"}
