"""The learned aggregator against a softmax per request, query and head."""

from __future__ import annotations

import pytest
import torch
from histories import DIM, make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.errors import UserError
from hisac_rec.methods import learned as module
from hisac_rec.methods.base import History
from hisac_rec.methods.learned import Method
from hisac_rec.methods.parts.compressor import CompressorConfig


def make_method(agents: int, heads: int = 2, dtype: torch.dtype = torch.float64) -> Method:
    torch.manual_seed(0)
    method = Method(CompressorConfig(agents=agents, heads=heads), make_shape(dtype=dtype))
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return method.to(dtype)


def plain(method: Method, values: Tensor) -> Tensor:
    """[K, d] agents of one request's events."""
    mean = values.mean(1, keepdim=True)
    variance = (values - mean).square().mean(1, keepdim=True)
    normal = (values - mean) / (variance + 1e-5).sqrt() * method.norm.weight + method.norm.bias
    keys, read = normal @ method.key.weight.T, values @ method.value.weight.T
    width = DIM // method.config.heads
    agents = []
    for query in method.queries:
        heads = []
        for head in range(method.config.heads):
            part = slice(head * width, (head + 1) * width)
            weights = (keys[:, part] @ query[part] / width**0.5).exp()
            heads.append(weights @ read[:, part] / weights.sum())
        agents.append(torch.cat(heads))
    return torch.stack(agents)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 17, 90]), min_size=1, max_size=4),
    agents=st.integers(1, 6),
    heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_equals_a_plain_softmax(lengths: list[int], agents: int, heads: int, seed: int) -> None:
    method = make_method(agents, heads)
    history, _ = make_case(lengths, [1] * len(lengths), dtype=torch.float64, seed=seed)
    memory = method.compress(history)
    for request, length in enumerate(lengths):
        first = int(history.offsets[request])
        assert (memory.filled[request] == bool(length)).all()
        assert memory.events[request].tolist() == pytest.approx([length / agents] * agents)
        if length:
            expected = plain(method, history.values[first : first + length])
            torch.testing.assert_close(memory.vectors[request], expected)
        else:
            assert not memory.vectors[request].any()


def test_scores_beyond_the_range_of_exp() -> None:
    """One request's scores lie far below another's: neither vanishes nor overflows."""
    method = make_method(3)
    with torch.no_grad():
        method.queries *= 500
    history, _ = make_case([300, 5], [1, 1], dtype=torch.float64)
    memory = method.compress(history)
    assert memory.vectors.isfinite().all()
    width = DIM // 2
    keys = method.key(method.norm(history.values))[300:]
    scores = keys[:, :width] @ method.queries[0, :width] / width**0.5
    expected = scores.softmax(0) @ method.value(history.values)[300:, :width]
    torch.testing.assert_close(memory.vectors[1, 0, :width], expected)


@pytest.mark.parametrize("chunk", [1 << 24, 1], ids=["whole", "chunks"])
def test_gradients_of_everything_learned(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    method = make_method(3)
    lengths = [40, 0, 1]
    history, _ = make_case(lengths, [1, 1, 1], dtype=torch.float64)
    direction = torch.randn(3, 3, DIM, generator=torch.Generator().manual_seed(1)).double()
    learned = [history.values, *(p for n, p in method.named_parameters() if "reader" not in n)]
    found = torch.autograd.grad((method.compress(history).vectors * direction).sum(), learned)
    slow = sum(
        (plain(method, history.values[first : first + length]) * direction[request]).sum()
        for request, (first, length) in enumerate(zip([0, 40, 40], lengths, strict=True))
        if length
    )
    expected = torch.autograd.grad(slow, learned)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_gradient_of_the_whole_method() -> None:
    method = make_method(2)
    history, candidates = make_case([5, 0, 1], [2, 1, 1], dtype=torch.float64)

    def run(values: Tensor, wanted: Tensor) -> Tensor:
        return method(
            History(history.offsets, values, history.codes, None, history.age),
            type(candidates)(
                candidates.offsets, wanted, candidates.codes, None, candidates.request
            ),
        )

    assert torch.autograd.gradcheck(run, (history.values, candidates.values))


def test_thousands_of_events_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make_method(16, dtype=torch.float32)
    history, _ = make_case([4_000, 0, 1, 700], [1] * 4)
    whole = method.compress(history)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1 << 14)
    torch.testing.assert_close(method.compress(history).vectors, whole.vectors)
    torch.testing.assert_close(
        whole.vectors[0], plain(method, history.values[:4_000]), rtol=1e-4, atol=1e-4
    )


def test_attention_weights_are_not_kept_beyond_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make_method(256, dtype=torch.float32)
    history, _ = make_case([5_000], [1])

    def kept_for_backward() -> int:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            memory = method.compress(history)  # alive, so that no address is used twice
        assert memory.vectors.requires_grad
        return sum(kept.values())

    weights = 5_000 * 256 * 2
    assert kept_for_backward() >= weights
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1 << 18)
    assert kept_for_backward() < weights // 4


def test_agents_differ_from_the_start() -> None:
    """Rows as small as a fresh table's still give queries something to tell apart."""
    torch.manual_seed(0)
    method = Method(CompressorConfig(agents=8), make_shape())
    history, _ = make_case([100], [1])
    history.events = history.values.detach() * 0.05
    agents = method.compress(history).vectors[0]
    centre = history.values.mean(0)
    assert ((agents - centre).norm(dim=1) > 0.1 * history.values.std()).all()


def test_a_batch_without_events_keeps_the_weights_in_the_graph() -> None:
    """The batch of a rank that has run out: replicas wait for the gradient of every weight."""
    method = make_method(4, dtype=torch.float32)
    method(*make_case([0], [1])).sum().backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()


def test_runs_under_autocast() -> None:
    method = make_method(4, dtype=torch.float32)
    history, candidates = make_case([50, 0, 1], [2, 1, 1])
    exact = method.compress(history).vectors
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = method.compress(history).vectors
        method(history, candidates).float().sum().backward()
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)
    assert method.queries.grad is not None
    assert method.queries.grad.isfinite().all()


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match=r"history.heads = 3 does not divide tables.dim = 8"):
        Method(CompressorConfig(heads=3), make_shape())


def test_parts_of_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are kept are worked on in parts that fit a cache."""
    method = make_method(3)
    history, _ = make_case([200, 0, 1, 40], [1] * 4, dtype=torch.float64)

    def gradient() -> tuple[Tensor, Tensor]:
        vectors = method.compress(history).vectors
        return vectors, torch.autograd.grad(vectors.square().sum(), history.values)[0]

    whole = gradient()
    monkeypatch.setattr(module, "PART_ELEMENTS", 1)
    torch.testing.assert_close(gradient(), whole)
