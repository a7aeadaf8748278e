"""The example of ``docs/method.md`` runs as printed, found by its dotted path."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from histories import make_case, make_shape

from hisac_rec.errors import UserError
from hisac_rec.methods.base import HistoryMethod
from hisac_rec.ranker.config import load_model_config

PAGE = Path(__file__).resolve().parents[1] / "docs" / "method.md"


def block(language: str) -> str:
    """The one fenced block of that language that is about the example."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (text for text in blocks if "FadingMean" in text)
    return found


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's two files, its module importable."""
    toml = block("toml")
    module = tomllib.loads(toml)["history"]["method"].partition(":")[0]
    (tmp_path / f"{module}.py").write_text(block("python"))
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "model.toml"
    path.write_text(toml)
    return path


def build(path: Path) -> tuple[Any, HistoryMethod]:
    from hisac_rec.methods.base import find_method

    config = load_model_config(path)
    keys = config.method_config()
    return keys, find_method(config.method)(keys, make_shape())


def test_the_example_fades_events_by_age(model_file: Path) -> None:
    config, method = build(model_file)
    history, candidates = make_case([3, 0, 5], [2, 1, 2])
    history.age = history.age * 4 * config.half_life
    result = method(history, candidates)
    expected = []
    for request in candidates.request.tolist():
        rows = slice(*history.offsets[request : request + 2].tolist())
        weight = 0.5 ** (history.age[rows] / config.half_life)
        mean = (weight[:, None] * history.values[rows]).sum(0)
        expected.append(mean / weight.sum() if len(weight) else mean)
    torch.testing.assert_close(result[:, 0], torch.stack(expected))
    assert not result[2].any(), "a request without events has a zero interest"
    result.sum().backward()
    assert history.values.grad is not None
    assert history.values.grad.abs().sum(1).all(), "every event is trained"


def test_the_example_runs_on_an_empty_batch(model_file: Path) -> None:
    _, method = build(model_file)
    history, candidates = make_case([0], [0])
    assert method(history, candidates).shape == (0, 1, method.dim)


def test_a_wrong_key_of_the_example_is_refused(model_file: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'half_life'"):
        load_model_config(model_file, ["history.halflife=3.0"])
