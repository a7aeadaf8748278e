"""Every shipped method on short and empty histories; methods of others by dotted path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from histories import DIM, make_case, make_shape

from hisac_rec.errors import UserError
from hisac_rec.methods.base import HistoryMethod, find_method, method_names, request_of_rows
from hisac_rec.ranker.config import load_model_config

OWN_METHOD = '''
from typing import ClassVar

from hisac_rec.config import Strict
from hisac_rec.methods.base import HistoryMethod


class LastConfig(Strict):
    scale: float = 2.0


class Last(HistoryMethod):
    """The newest event, scaled."""

    Config: ClassVar[type[Strict]] = LastConfig

    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.scale = config.scale

    def compress(self, history):
        padded = history.values.new_zeros((1, self.dim))
        rows = history.values if len(history.values) else padded
        filled = (history.offsets.diff() > 0).unsqueeze(1)
        return self.scale * rows[(history.offsets[1:] - 1).clamp_min(0)] * filled

    def read(self, memory, candidates):
        return memory[candidates.request].unsqueeze(1)
'''


@pytest.fixture
def own_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stranger's method in a package of its own."""
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "__init__.py").write_text("")
    (tmp_path / "stranger" / "last.py").write_text(OWN_METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    yield "stranger.last:Last"
    for name in ("stranger", "stranger.last"):
        sys.modules.pop(name, None)


def build(name: str, **keys: object) -> HistoryMethod:
    method = find_method(name)
    torch.manual_seed(0)
    return method(method.Config(**keys), make_shape())


def test_shipped_names() -> None:
    assert {"hisac", "mean", "none", "recent"} <= set(method_names())
    for name in method_names():
        assert issubclass(find_method(name), HistoryMethod)


@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize(
    ("lengths", "candidates"),
    [
        ([0], [3]),
        ([1], [2]),
        ([0, 0], [1, 2]),
        ([0, 1, 200, 0], [1, 5, 2, 1]),
        ([5, 0], [0, 3]),
        ([0], [0]),  # the batch of a rank that has run out
        ([7], [0]),
    ],
    ids=str,
)
def test_any_history_gives_finite_outputs_and_gradients(
    name: str, lengths: list[int], candidates: list[int]
) -> None:
    method = build(name)
    history, wanted = make_case(lengths, candidates)
    interest = method(history, wanted)
    assert interest.shape == (sum(candidates), method.interests, DIM)
    assert interest.isfinite().all()
    (interest.square().sum() + history.values.sum() + wanted.values.sum()).backward()
    tensors = [history.values, wanted.values, *method.parameters()]
    for gradient in (t.grad for t in tensors if t.grad is not None):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", method_names())
def test_requests_do_not_mix(name: str) -> None:
    """A request's interest is the same alone and beside others."""
    method = build(name)
    history, wanted = make_case([4, 33, 9], [2, 3, 1])
    together = method(history, wanted)
    part, rows = slice(4, 37), slice(2, 5)
    alone_history = type(history)(
        torch.tensor([0, 33]),
        history.values[part],
        history.codes[part],
        None if history.vectors is None else history.vectors[part],
        history.age[part],
    )
    alone_wanted = type(wanted)(
        torch.tensor([0, 3]),
        wanted.values[rows],
        wanted.codes[rows],
        None if wanted.vectors is None else wanted.vectors[rows],
        torch.zeros(3, dtype=torch.int64),
    )
    alone = method(alone_history, alone_wanted)
    torch.testing.assert_close(alone, together[rows], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", method_names())
def test_compress_and_read_apart_equal_forward(name: str) -> None:
    method = build(name)
    history, wanted = make_case([4, 0, 9], [2, 3, 1])
    torch.testing.assert_close(
        method.read(method.compress(history), wanted), method(history, wanted)
    )


def test_mean_and_recent_by_hand() -> None:
    history, wanted = make_case([3, 0, 1], [1, 1, 2])
    values = history.values.detach()
    expected = torch.stack([values[:3].mean(0), torch.zeros(DIM), values[3], values[3]])
    torch.testing.assert_close(build("mean")(history, wanted)[:, 0], expected)
    events, filled = build("recent", events=2).compress(history)
    assert filled.tolist() == [[True, True], [False, False], [True, False]]
    torch.testing.assert_close(events[0], values[[2, 1]])
    torch.testing.assert_close(events[2], torch.stack([values[3], torch.zeros(DIM)]))


def test_request_of_rows() -> None:
    assert request_of_rows(torch.tensor([0, 2, 2, 3]), 3).tolist() == [0, 0, 2]


def test_a_method_of_others_needs_no_edit_here(own_method: str) -> None:
    history, wanted = make_case([3, 0], [1, 2])
    interest = build(own_method)(history, wanted)
    torch.testing.assert_close(interest[0, 0], 2 * history.values[2])
    assert not interest[1:].any()


def test_a_method_of_others_has_typed_keys(own_method: str, tmp_path: Path) -> None:
    file = tmp_path / "model.toml"
    file.write_text(f'name = "own"\n[history]\nmethod = "{own_method}"\n')
    assert load_model_config(file).history == {"method": own_method, "scale": 2.0}
    file.write_text(f'name = "own"\n[history]\nmethod = "{own_method}"\nscala = 1\n')
    with pytest.raises(UserError, match=r"unknown key 'scala'; did you mean 'scale'"):
        load_model_config(file)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hisak", r"history.method = 'hisak' is neither shipped .*; did you mean 'hisac'\?"),
        ("base", "is neither shipped"),
        ("nowhere.at_all:Method", "cannot be imported: No module named 'nowhere'"),
        ("hisac_rec.methods.mean:Methode", "cannot be imported"),
        ("hisac_rec.methods.mean:MeanConfig", "is no subclass of HistoryMethod"),
    ],
)
def test_messages(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_method(name)
