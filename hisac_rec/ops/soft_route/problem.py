"""What a backend of soft routing is given, and what it leaves for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

from torch import Tensor

Routing: TypeAlias = Literal["events", "agents", "hard"]


@dataclass(frozen=True)
class Frozen:
    """What alpha depends on. Legend: R requests, K slots, T rows, s semantic width.

    Args:
        queries: [R, K, s] agent vectors z_a (anything in unfilled slots).
        keys: [T, s] vectors e_i.
        counts: [T] events that each row stands for, or None for one each.
        offsets: [R+1] int64 over T.
        tau: temperature, > 0.
        squared: use the squared distance.
        routing: "events": alpha is a softmax over events, each agent reads the whole history;
            "agents": over agents, each event is shared out among the agents; "hard": each
            event goes to its nearest agent alone, the first of equals.
        filled: [R, K] bool, slots that take part in "agents" and "hard"; None: all.
    """

    queries: Tensor
    keys: Tensor
    counts: Tensor | None
    offsets: Tensor
    tau: float
    squared: bool
    routing: Routing = "events"
    filled: Tensor | None = None


class Routed(NamedTuple):
    """What the forward pass finds. Legend: d value width.

    Args:
        vectors: [R, K, d] weighted means of the values, of their type; zeros where nothing
            arrived.
        mass: [R, K] sum of each agent's weights, of the queries' type.
        highest: [R, K] score that weights of an agent are relative to, the largest or near it; -inf
            where there is no row, and anything in other routings than "events".
    """

    vectors: Tensor
    mass: Tensor
    highest: Tensor


class Backend(Protocol):
    """A way to compute it; all of them agree to rounding."""

    @staticmethod
    def forward(values: Tensor, frozen: Frozen) -> Routed:
        """Route ``values`` [T, d]."""

    @staticmethod
    def backward(scaled: Tensor, highest: Tensor, frozen: Frozen) -> Tensor:
        """[T, d]: ``sum_a w[a, i] scaled_a``; ``scaled`` [R, K, d] is the gradient by mass."""
