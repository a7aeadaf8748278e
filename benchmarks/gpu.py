"""Measure the GPU kernels in one call; a short table comes last.

Needs torch with CUDA, Triton and this repository, and neither fbgemm nor torchrec, so that it can
be carried to whatever machine is lent::

    python -m benchmarks.gpu
    python -m benchmarks.gpu --requests 64 --events 10000 --json gpu.json

Every rival is checked to give the operator's result before it is timed. Times are CUDA events,
rivals take turns, figures are medians of ratios of one turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from hisac_rec.ops.rows import group_rows, sum_rows
from hisac_rec.ops.soft_route import Frozen, padded, soft_route

AGENTS, WIDTH, TAU, TURNS, PRODUCT = 200, 64, 0.5, 20, 8192
Route = Callable[[Tensor, Frozen], Tensor]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--events", type=int, default=10_000, help="of each request")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu rehearses")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: no CUDA device; on a CPU run 'make bench'")
    named = torch.cuda.get_device_name() if device.type == "cuda" else "CPU: a rehearsal"
    rows: list[tuple[str, str]] = [("device", named)]
    for dtype in (torch.float32, torch.bfloat16):
        rows += routing(arguments.requests, arguments.events, dtype, device)
    rows += sums(arguments.requests * arguments.events, device)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        sys.stdout.write(f"{name:<{width}}  {value}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(dict(rows), indent=1))


def routing(
    requests: int, events: int, dtype: torch.dtype, device: torch.device
) -> list[tuple[str, str]]:
    """The fused kernels against a matrix product of the same type, plain torch and SDPA."""
    values, frozen = _case(requests, events, dtype, device)
    name = str(dtype).removeprefix("torch.")
    gradient = torch.randn(requests, AGENTS, WIDTH, device=device, dtype=dtype)
    rivals: dict[str, Route] = {
        "fused": soft_route,
        "padded blocks": lambda rows, given: padded.forward(rows, given).vectors,
        "eager": _eager,
    }
    tolerance = 2e-3 if dtype == torch.float32 else 2e-2
    for rival in rivals.values():
        expected = soft_route(values, frozen)
        torch.testing.assert_close(rival(values, frozen), expected, rtol=tolerance, atol=tolerance)
    size = PRODUCT if device.type == "cuda" else 128
    square = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(square)
    seconds = _take_turns(
        {
            "product": partial(torch.mm, square, square, out=out),
            "both": partial(_both, soft_route, values, frozen, gradient),
            "eager both": partial(_both, _eager, values, frozen, gradient),
            "sdpa": partial(_squared_attention, values, frozen),
            **{key: partial(rival, values.detach(), frozen) for key, rival in rivals.items()},
        }
    )
    work = 2 * requests * events * AGENTS * 2 * WIDTH / (2 * size**3)
    bytes_of_alpha = requests * events * AGENTS * values.element_size()
    return [
        (
            f"{name}: forward, share of a product of {size}^3",
            _percent(seconds, "product", "fused", work),
        ),
        (f"{name}: both passes, share of it", _percent(seconds, "product", "both", 2 * work)),
        (f"{name}: faster than eager", _times(seconds, "eager", "fused")),
        (f"{name}: both passes, faster than eager", _times(seconds, "eager both", "both")),
        (f"{name}: faster than padded blocks", _times(seconds, "padded blocks", "fused")),
        (f"{name}: faster than squared attention by SDPA", _times(seconds, "sdpa", "fused")),
        (
            f"{name}: peak extra memory of both passes over alpha's",
            f"{100 * _extra_bytes(values, frozen, gradient) / bytes_of_alpha:.2f} %",
        ),
    ]


def sums(events: int, device: torch.device) -> list[tuple[str, str]]:
    """Sums of table rows by group against ``index_add`` of gathered rows."""
    rows = 1_000_000 if device.type == "cuda" else 10_000
    table = torch.randn(rows, WIDTH, device=device, requires_grad=True)
    at = torch.randint(len(table), (events,), device=device)
    owner = torch.randint(events // 50, (events,), device=device)

    def grouped() -> None:
        found = sum_rows(table, at, group_rows(owner, events // 50))
        torch.autograd.grad(found, table, torch.ones_like(found))

    def gathered() -> None:
        found = torch.zeros(events // 50, WIDTH, device=device).index_add(0, owner, table[at])
        torch.autograd.grad(found, table, torch.ones_like(found))

    seconds = _take_turns({"grouped": grouped, "gathered": gathered})
    return [
        (
            "sums by group, both passes, faster than index_add",
            _times(seconds, "gathered", "grouped"),
        )
    ]


def _case(
    requests: int, events: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Frozen]:
    generator = torch.Generator(device).manual_seed(0)

    def unit(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, WIDTH, generator=generator, device=device)
        return functional.normalize(drawn, dim=-1).to(dtype)

    offsets = torch.arange(0, requests * events + 1, events, device=device)
    frozen = Frozen(unit(requests, AGENTS), unit(requests * events), None, offsets, TAU, False)
    values = torch.randn(requests * events, WIDTH, generator=generator, device=device)
    return values.to(dtype).requires_grad_(), frozen


def _eager(values: Tensor, frozen: Frozen) -> Tensor:
    """Batched products over requests of equal length, softmax, product."""
    requests = len(frozen.queries)
    keys = frozen.keys.view(requests, -1, WIDTH).float()
    distance = torch.cdist(frozen.queries.float(), keys, compute_mode="use_mm_for_euclid_dist")
    weights = torch.softmax(distance / -TAU, dim=-1).to(values.dtype)
    return weights @ values.view(requests, -1, WIDTH)


def _squared_attention(values: Tensor, frozen: Frozen) -> Tensor:
    """SDPA, where it applies: squared distance is a product plus a bias of the key."""
    requests = len(frozen.queries)
    keys = frozen.keys.view(requests, -1, WIDTH)
    bias = (keys * keys).sum(-1).div(-TAU).unsqueeze(1).expand(-1, AGENTS, -1)
    rows = values.detach().view(requests, -1, WIDTH)
    return functional.scaled_dot_product_attention(
        frozen.queries * (2 / TAU), keys, rows, bias, scale=1.0
    )


def _both(route: Route, values: Tensor, frozen: Frozen, gradient: Tensor) -> None:
    torch.autograd.grad(route(values, frozen), values, gradient)


def _extra_bytes(values: Tensor, frozen: Frozen, gradient: Tensor) -> int:
    """Peak of both passes beyond what was there and what comes out."""
    if not values.is_cuda:
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _both(soft_route, values, frozen, gradient)
    torch.cuda.synchronize()
    outputs = (values.numel() + gradient.numel()) * values.element_size()
    return max(0, torch.cuda.max_memory_allocated() - before - outputs)


def _take_turns(rivals: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Milliseconds of every rival in every turn, after three for warmth."""
    found: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(TURNS + 3):
        for name, run in rivals.items():
            milliseconds = _timed(run)
            if turn >= 3:
                found[name].append(milliseconds)
    return found


def _timed(run: Callable[[], object]) -> float:
    if not torch.cuda.is_available():
        started = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def _ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    pairs = zip(seconds[over], seconds[under], strict=True)
    return statistics.median(one / other for one, other in pairs)


def _times(seconds: dict[str, list[float]], slower: str, faster: str) -> str:
    return f"{_ratio(seconds, slower, faster):.2f}x"


def _percent(seconds: dict[str, list[float]], whole: str, part: str, work: float) -> str:
    return f"{100 * work * _ratio(seconds, whole, part):.1f} %"


if __name__ == "__main__":
    main()
