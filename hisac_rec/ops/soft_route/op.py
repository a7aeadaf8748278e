"""The operator ``hisac_rec::soft_route``: signature, gradient, and which backend runs it.

``alpha[a, i] = softmax over i of (-||e_i - z_a|| / tau)`` and ``zhat_a = sum_i alpha e'_i``
is the paper's form; two rivals of it share the operator: a softmax over the agents (every
event is shared out among them) and its limit, hard routing (every event to one agent).
Queries and keys are frozen: no gradient flows through alpha, so the backward pass is
``d e' = alpha^T d zhat`` and alpha is recomputed there instead of being stored.

Legend: R requests, K slots, T rows (events, or leaves standing for several events),
s semantic width, d value width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.library import custom_op

from hisac_rec.ops.soft_route import padded, stream
from hisac_rec.ops.soft_route.problem import Backend, Frozen, Routed, Routing

STREAM_ROWS = 128
"""Mean rows a request from which a CPU streams; shorter ones share matrix products."""


def soft_route(values: Tensor, frozen: Frozen) -> Tensor:
    """Route rows to agents: the vectors of :func:`route_with_mass`."""
    return route_with_mass(values, frozen)[0]


def route_with_mass(values: Tensor, frozen: Frozen) -> tuple[Tensor, Tensor]:
    """Route rows to agents.

    With ``counts``, a row stands for that many events with one shared key, and its value is
    the *sum* of theirs: the result equals routing the events one by one.

    Args:
        values: [T, d].
        frozen: queries, keys and temperature.

    Returns:
        vectors [R, K, d], weighted means of the values, zeros where nothing arrived; and
        mass [R, K], the sum of each agent's weights (with "agents" and "hard": its events),
        which has no gradient. O(T K (s + d)) multiplications; extra memory is the backend's.
    """
    # Distances of 8 significant bits would change which events an agent reads, so autocast
    # stops here; the result has the type of the values.
    with torch.autocast(values.device.type, enabled=False):
        vectors, mass, _ = _soft_route(values, *_arguments(frozen))
    return vectors, mass.detach()


def choose_backend(device: torch.device, frozen: Frozen) -> Backend:
    """The backend for this device and these sizes; looks at shapes alone, waits for nothing."""
    requests = max(1, frozen.queries.shape[0])
    if device.type == "cuda" and frozen.routing == "events":
        from hisac_rec.ops.soft_route import fused  # needs Triton, which a CPU may lack

        return cast("Backend", fused)
    long = frozen.keys.shape[0] >= STREAM_ROWS * requests
    if device.type == "cpu" and frozen.routing == "events" and long:
        return cast("Backend", stream)
    return cast("Backend", padded)


@custom_op("hisac_rec::soft_route", mutates_args=())
def _soft_route(
    values: Tensor,
    queries: Tensor,
    keys: Tensor,
    offsets: Tensor,
    counts: Tensor | None,
    filled: Tensor | None,
    tau: float,
    squared: bool,
    routing: str,
) -> tuple[Tensor, Tensor, Tensor]:
    frozen = _frozen(queries, keys, offsets, counts, filled, tau, squared, routing)
    return tuple(choose_backend(values.device, frozen).forward(values, frozen))  # type: ignore[return-value]


@custom_op("hisac_rec::soft_route_backward", mutates_args=())
def _soft_route_backward(
    gradient: Tensor,
    mass: Tensor,
    highest: Tensor,
    queries: Tensor,
    keys: Tensor,
    offsets: Tensor,
    counts: Tensor | None,
    filled: Tensor | None,
    tau: float,
    squared: bool,
    routing: str,
) -> Tensor:
    frozen = _frozen(queries, keys, offsets, counts, filled, tau, squared, routing)
    divisor = mass.clamp_min(torch.finfo(mass.dtype).tiny).unsqueeze(-1)
    scaled = (gradient / divisor).to(gradient.dtype)
    return choose_backend(gradient.device, frozen).backward(scaled, highest, frozen)


@_soft_route.register_fake
def _(values: Tensor, queries: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    vectors = values.new_empty((*queries.shape[:2], values.shape[1]))
    return vectors, queries.new_empty(queries.shape[:2]), queries.new_empty(queries.shape[:2])


@_soft_route_backward.register_fake
def _(gradient: Tensor, mass: Tensor, highest: Tensor, queries: Tensor, keys: Tensor, *_: Any):  # type: ignore[no-untyped-def]
    return gradient.new_empty((keys.shape[0], gradient.shape[-1]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Routed) -> None:
    _, *tensors, tau, squared, routing = inputs
    ctx.save_for_backward(*output[1:], *tensors)  # some may be None
    ctx.how = tau, squared, routing


def _gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    found = _soft_route_backward(gradient.contiguous(), *ctx.saved_tensors, *ctx.how)
    return found, *(None for _ in range(8))


_soft_route.register_autograd(_gradient, setup_context=_keep)


def _arguments(frozen: Frozen) -> tuple[Any, ...]:
    """The operator's arguments after the values."""
    return (
        frozen.queries.detach(),
        frozen.keys.detach(),
        frozen.offsets,
        frozen.counts,
        frozen.filled,
        frozen.tau,
        frozen.squared,
        frozen.routing,
    )


def _frozen(
    queries: Tensor,
    keys: Tensor,
    offsets: Tensor,
    counts: Tensor | None,
    filled: Tensor | None,
    tau: float,
    squared: bool,
    routing: str,
) -> Frozen:
    return Frozen(queries, keys, counts, offsets, tau, squared, cast("Routing", routing), filled)
