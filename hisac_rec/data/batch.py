"""One batch of requests, as the model sees it: jagged from end to end.

Legend: R requests, T history events and N candidates over all requests, U distinct items of
the histories, D semantic-ID levels, B bags, S single events. Everything about a request is
stored once, however many candidates it has, and an item of many histories is looked up once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class RequestBatch(Pipelineable):
    """A batch of R requests; moves between devices as a whole.

    A batch may hold a single empty request (``labels`` empty): that is what a rank works on
    while others still have data.
    """

    features: KeyedJaggedTensor
    """Ids for the trained tables, stride R; keys are those of the model's ``InputSpec``. A key
    holds each id once, ascending, all in the first request."""
    bags: KeyedJaggedTensor
    """Weighted ids for the tables whose rows are summed where they are, stride B, one key a table
    (:mod:`hisac_rec.data.bags`); no keys where there are none."""
    single_events: Tensor
    """[S] int64: events that have a bag of their own, ascending."""
    semantics: KeyedJaggedTensor
    """Item ids for the frozen semantic-vector table, stride R, all in the first request: the U
    distinct items of the histories, the N candidates; no keys where unused."""
    history_offsets: Tensor
    """[R+1] int64: events of request r are rows ``offsets[r]:offsets[r+1]`` of T."""
    history_items: Tensor
    """[U] int64: the distinct items of all histories, ascending; none where no event is looked up
    one by one."""
    history_rows: Tensor
    """[T] int64: the row among the U distinct items that each event's item has."""
    history_codes: Tensor
    """[T, D] int64: semantic-ID codes of the events."""
    history_type: Tensor
    """[T] int64: event types."""
    history_placed: Tensor
    """[T] bool: whether anything is known of the event's item that its codes could come from."""
    history_age: Tensor
    """[T] float32: request time minus event time, in the data set's unit of time."""
    history_features: dict[str, Tensor]
    """Item feature that the method reads raw -> [T] int64 ids."""
    candidate_offsets: Tensor
    """[R+1] int64: candidates of request r are rows ``offsets[r]:offsets[r+1]`` of N."""
    candidate_codes: Tensor
    """[N, D] int64: semantic-ID codes of the candidates."""
    candidate_placed: Tensor
    """[N] bool: whether anything is known of the item that its codes could come from."""
    candidate_features: dict[str, Tensor]
    """Item feature that the method reads raw -> [N] int64 ids."""
    places: dict[str, Tensor]
    """Key of ``features`` -> [values] int64: which of its ids each value is, of users R, of the U
    distinct items or of the N candidates; absent where the ids are the U items themselves."""
    owners: dict[str, Tensor]
    """Key of which a value reads several rows (a list, or several hash functions) -> [values]
    int64: the row of U, N or R each belongs to."""
    memory: dict[str, Tensor]
    """What a cache held of the histories, by name (:mod:`hisac_rec.serving.cache`); the events are
    the newest ones alone then. Empty: they are all there."""
    labels: Tensor
    """[N] float32 of the model's main task; nan where it does not apply to the candidate."""
    tasks: dict[str, Tensor]
    """Further task of the model -> [N] float32 labels, alike."""
    request_rows: Tensor
    """[R, 4] int64: user, request time, request number, events that the request may see (those
    beyond ``max_history`` too); for predictions and messages."""
    candidate_items: Tensor
    """[N] int64: item ids, for predictions and messages."""
    oracle: Tensor
    """[N] float32 true click probability, or [0] where unknown. No model reads it."""
    loss_scale: Tensor
    """[] float32: what the sum of losses is multiplied by (ranks / candidates of all ranks;
    the ranks' gradients are averaged)."""

    def to(self, device: torch.device, non_blocking: bool = False) -> RequestBatch:
        """Copy to a device."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> RequestBatch:
        """Copy to page-locked memory, so that copies to a GPU can overlap with work."""
        return self._map(lambda value: value.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that ``stream`` uses this batch."""
        self._map(lambda value: value.record_stream(stream))

    def with_loss_scale(self, scale: float) -> RequestBatch:
        """The same batch with another ``loss_scale``."""
        return replace(self, loss_scale=torch.tensor(scale, dtype=torch.float32))

    @property
    def num_requests(self) -> int:
        """R."""
        return len(self.history_offsets) - 1

    @property
    def num_candidates(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def num_events(self) -> int:
        """T."""
        return len(self.history_type)

    def _map(self, function: Callable[[Any], Any]) -> RequestBatch:
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                moved[field.name] = {key: function(item) for key, item in value.items()}
            else:
                moved[field.name] = function(value)
        return RequestBatch(**moved)
