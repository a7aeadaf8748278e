"""The interface of history methods, and how one is found by name.

A method turns a jagged history into interest vectors per candidate, in two steps:
``compress`` sees the history alone (once per request; its result can be cached) and
``read`` brings in the candidates. Legend: R requests, T events, N candidates, V interest
vectors a candidate, D levels, d width of trained embeddings, s width of frozen semantic
vectors.

A new method is one new file: ``hisac_rec/methods/<name>.py`` (or any importable module)
that defines a :class:`HistoryMethod` called ``Method``. In the model file
``history.method = "<name>"`` or ``"package.module:ClassName"``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hisac_rec.config import Strict
from hisac_rec.data.bags import FrozenEvents, Grouping
from hisac_rec.data.inputs import Side
from hisac_rec.errors import UserError, did_you_mean
from hisac_rec.methods.events import EventRows, PooledEvents
from hisac_rec.ops.rows import group_rows, sum_rows, take_rows


@dataclass
class History:
    """The histories of R requests, joined."""

    offsets: Tensor
    """[R+1] int64."""
    events: EventRows | PooledEvents | Tensor
    """Trainable event embeddings e', as sums of table rows (no non-linearity) or as [T, d]."""
    codes: Tensor
    """[T, D] int64 semantic-ID codes; D = 0 where the data set has none."""
    vectors: Tensor | None
    """[T, s] frozen semantic vectors e, where the method asked for them."""
    age: Tensor
    """[T] float32: request time minus event time."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """Single-valued item features the method asked for, name -> [T] int64 ids."""
    type: Tensor | None = None
    """[T] int64 event types; None: all are of one type."""
    placed: Tensor | None = None
    """[T] bool: whether the codes come from something known of the item; None: all do."""
    _values: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def num_requests(self) -> int:
        """R."""
        return self.offsets.shape[0] - 1

    @property
    def num_events(self) -> int:
        """T."""
        return len(self.events)

    @property
    def frozen(self) -> FrozenEvents:
        """What no training changes of the events."""
        return FrozenEvents(self.offsets, self.codes, self.type, self.placed)

    @property
    def values(self) -> Tensor:
        """[T, d] e' of every event. A method that needs sums or some of them asks for those."""
        if isinstance(self.events, Tensor):
            return self.events
        # What was built where no gradient was wanted does not serve where one is.
        blind = self._values is not None and not self._values.requires_grad
        if self._values is None or (blind and torch.is_grad_enabled()):
            self._values = self.events.each()
        return self._values

    def sums(self, owner: Tensor, groups: int) -> Tensor:
        """[groups, d] sums of e' by ``owner`` [T] int64. O(T d), nothing of size T d kept."""
        if not isinstance(self.events, Tensor):
            return self.events.sums(owner, groups)
        every = torch.arange(len(owner), device=owner.device)
        return sum_rows(self.events, every, group_rows(owner, groups))

    def take(self, rows: Tensor) -> Tensor:
        """[n, d] e' of the events ``rows`` [n] int64. O(n d)."""
        if not isinstance(self.events, Tensor):
            return self.events.take(rows)
        return take_rows(self.events, rows)


@dataclass
class Candidates:
    """The candidates of the same R requests, joined."""

    offsets: Tensor
    """[R+1] int64."""
    values: Tensor
    """[N, d] trainable embeddings in the same space as ``History.values``."""
    codes: Tensor
    """[N, D] int64 semantic-ID codes."""
    vectors: Tensor | None
    """[N, s] frozen semantic vectors, where the method asked for them."""
    request: Tensor
    """[N] int64: the request of each candidate."""
    placed: Tensor | None = None
    """[N] bool: whether the codes come from something known of the item; None: all do."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """Single-valued item features the method asked for, name -> [N] int64 ids."""


@dataclass(frozen=True)
class MethodShape:
    """What a method needs to know to be built."""

    dim: int
    """d."""
    codebook: tuple[Tensor, ...]
    """D tensors [C_l, s]; on the meta device while only planning."""
    vector_dim: int
    """s."""
    event_types: tuple[str, ...] = ()
    """Names of the data set's event types, in the order of their numbers."""
    votes: Mapping[str, float] | None = None
    """Event type -> vote, as the data set's definition says; None: every event votes 1."""


class HistoryMethod(nn.Module):
    """Base class of all history methods.

    Args:
        config: an instance of the class's own ``Config``.
        shape: sizes and codebook.
    """

    Config: ClassVar[type[Strict]] = Strict
    """Typed ``[history]`` keys besides ``method``."""

    uses_history: ClassVar[bool] = True
    """False: the ranker feeds no history at all, neither long nor short."""

    compresses: bool = False
    """True where ``compress`` leaves a memory of bounded size, whatever the history's length:
    what a cache may hold per user."""

    memory: ClassVar[type[Any] | None] = None
    """The dataclass that ``compress`` gives, of tensors [R, K, ...], where a cache holds it."""

    search: ClassVar[dict[str, list[Any]]] = {}
    """``[history]`` keys worth tuning, each with the values to try (``hisac-rec tune``)."""

    def __init__(self, config: Any, shape: MethodShape) -> None:
        super().__init__()
        self.dim = shape.dim
        self.interests = 1
        """V: how many vectors ``read`` gives a candidate."""
        self.auxiliary_weight = 0.0
        """Weight of the loss of :meth:`auxiliary`; 0: it is not asked."""

    @classmethod
    def vector_sides(cls, config: Any) -> tuple[Side, ...]:
        """Sides ("history", "candidate") whose frozen semantic vectors are read."""
        return ()

    @classmethod
    def item_features(cls, config: Any) -> tuple[str, ...]:
        """Single-valued item features whose raw ids are read, of events and candidates."""
        return ()

    @classmethod
    def grouping(cls, config: Any, shape: MethodShape) -> Grouping | None:
        """The sums of events that are all ``compress`` reads of them, but for the newest events
        (``tables.pool``); None: it reads events one by one.
        """
        return None

    @classmethod
    def newest(cls, config: Any) -> int:
        """So many newest events are read one by one beside the sums of :meth:`grouping`."""
        return 0

    def compress(self, history: History) -> Any:
        """The candidate-independent part: whatever ``read`` needs, per request."""
        raise NotImplementedError

    def restore(self, held: dict[str, Tensor], newest: History) -> Any:
        """The memory of ``compress`` again, from what a cache held of it.

        Args:
            held: its tensors by name.
            newest: the newest events of the same R requests, uncompressed.
        """
        if self.memory is None:
            raise NotImplementedError
        return self.memory(**held)

    def read(self, memory: Any, candidates: Candidates) -> Tensor:
        """[N, V, d] interest vectors of every candidate."""
        raise NotImplementedError

    def auxiliary(self, memory: Any, candidates: Candidates) -> Tensor:
        """[N] logits of a second loss against the same labels, asked in training alone."""
        raise NotImplementedError

    def forward(self, history: History, candidates: Candidates) -> Tensor:
        """[N, V, d]: compress once per request, then read for its candidates."""
        return self.read(self.compress(history), candidates)


def method_names() -> list[str]:
    """Names of the shipped methods."""
    package = importlib.import_module("hisac_rec.methods")
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    return sorted(modules - {"base", "events", "parts"})


def find_method(name: str) -> type[HistoryMethod]:
    """The class behind ``history.method``.

    Args:
        name: a shipped name, or ``package.module:ClassName``.

    Raises:
        UserError: no such method; names the nearest shipped one.
    """
    module_name, _, class_name = name.partition(":")
    if not class_name:
        if name not in method_names():
            raise UserError(
                f"history.method = '{name}' is neither shipped nor of the form "
                f"package.module:ClassName{did_you_mean(name, method_names())}"
            )
        module_name, class_name = f"hisac_rec.methods.{name}", "Method"
    try:
        method = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"history.method = '{name}': cannot be imported: {error}") from error
    if not (isinstance(method, type) and issubclass(method, HistoryMethod)):
        raise UserError(f"history.method = '{name}': is no subclass of HistoryMethod")
    return method


def request_of_rows(offsets: Tensor, rows: int) -> Tensor:
    """[rows] int64: the request that each row of a jagged tensor belongs to. O(rows)."""
    lengths = offsets.diff()
    requests = torch.arange(len(lengths), device=offsets.device)
    return torch.repeat_interleave(requests, lengths, output_size=rows)


def offsets_of_rows(request: Tensor, requests: int) -> Tensor:
    """[requests + 1] int64: where each request's rows begin; of :func:`request_of_rows` the
    inverse. O(rows).
    """
    counts = torch.bincount(request, minlength=requests)
    return nn.functional.pad(counts.cumsum(0), (1, 0))
