"""What a history costs a method: operations and bytes, counted and not timed.

Matrix products are counted by ``torch.utils.flop_counter`` (two operations for each
multiply-add); every other operation that is no view counts one for each element that it
handles, so that pooling, gathering, voting and sorting are not free. Counts do not depend
on the machine or on what else runs on it. A method's reference form on the CPU is counted.

Legend: L events of one request, N candidates, d width, s semantic width, D levels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from hisac_rec.compare.cells import Cost
from hisac_rec.methods.base import Candidates, History, HistoryMethod, find_method
from hisac_rec.train.job import Job

LENGTHS = (100, 1_000, 10_000)
"""History lengths at which a method is counted."""

CANDIDATES = (64, 128)
"""``read`` is counted for both: the difference is the cost of further candidates."""

MAX_BYTES = 2 << 30
"""A length at which one tensor would be larger than this is left out."""

MAX_OPERATIONS = 2e11
"""A length at which a method would need more operations than this is left out."""

SPAN = 30 * 86_400.0
"""Age of a generated history's oldest event, in seconds."""

aten = torch.ops.aten
_GATHERS = {aten.index, aten.index_select, aten.gather, aten.embedding, aten.take}
_FREE = {aten.empty, aten.new_empty, aten.empty_like, aten._unsafe_view, aten.detach}


class OperationCounter(TorchDispatchMode):
    """Counts the operations of everything that runs inside the ``with`` block.

    Example::

        with OperationCounter() as counted:
            torch.ones(2, 3) @ torch.ones(3, 4)
        counted.products  # 2 * 2 * 3 * 4
    """

    def __init__(self) -> None:
        super().__init__()
        self._flops = FlopCounterMode(
            display=False,
            custom_mapping={
                aten._cdist_forward: _distance_flops,
                aten._euclidean_dist: _distance_flops,
            },
        )
        self._attention = sdpa_kernel(SDPBackend.MATH)  # fused attention is not in its registry
        self.elements = 0
        """Elements handled by what is no matrix product."""
        self.largest = 0
        """Bytes of the largest tensor made."""

    @property
    def products(self) -> int:
        """Operations of matrix products."""
        return int(self._flops.get_total_flops())

    @property
    def total(self) -> int:
        """All operations."""
        return self.products + self.elements

    def __enter__(self) -> OperationCounter:
        self._attention.__enter__()
        self._flops.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._flops.__exit__(*error)
        self._attention.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        made = [one for one in tree_iter(result) if isinstance(one, Tensor)]
        if func.is_view or packet in _FREE:
            return result
        self.largest = max([self.largest, *(one.numel() * one.element_size() for one in made)])
        if packet not in self._flops.flop_registry:
            # A reduction handles what it reads, a gather what it writes.
            read = [] if packet in _GATHERS else list(tree_iter((args, kwargs)))
            tensors = [one for one in (*made, *read) if isinstance(one, Tensor)]
            self.elements += max((one.numel() for one in tensors), default=0)
        return result


def _distance_flops(
    first: tuple[int, ...], second: tuple[int, ...], *_: Any, **__: Any
) -> int:  # shapes [..., P, s] and [..., R, s]
    return 2 * math.prod(first) * second[-2]


def history_costs(job: Job, lengths: tuple[int, ...] = LENGTHS) -> list[Cost]:
    """Count the job's history method on generated histories of each length.

    The events are items of the data set, drawn by their training impressions, with their own
    codes, vectors and features; what a method does with them (how many agents it keeps, say)
    is as on real histories of that length. A length whose cost, projected from the shorter
    ones, is beyond :data:`MAX_BYTES` or :data:`MAX_OPERATIONS` is left out.
    """
    method_class = find_method(job.config.method)
    if not method_class.uses_history:
        return [
            Cost(length=n, events=0, compress=0, read_request=0, read_candidate=0, memory_bytes=0)
            for n in lengths
        ]
    shape = job.schema.method_shape(job.config.tables.dim)
    torch.manual_seed(0)
    method = method_class(job.config.method_config(), shape).eval()
    found: list[Cost] = []
    steps: list[tuple[int, float, float]] = []
    for length in lengths:
        events = min(length, job.spec.max_history or length)
        if len(steps) > 1 and events > steps[-1][0] and not _affordable(steps, events):
            break
        cost, largest = _count(method, job, length, events)
        found.append(cost)
        steps.append((events, float(cost.compress + cost.read_request), float(largest)))
    return found


def _affordable(steps: list[tuple[int, float, float]], events: int) -> bool:
    """Whether (events, operations, largest tensor), projected by a power law, stay in bounds."""
    (n0, *before), (n1, *last) = steps[-2:]
    if n1 == n0:
        return True
    growth = math.log(events / n1) / math.log(n1 / n0)
    operations, largest = (
        now * (max(1.0, now) / max(1.0, then)) ** growth
        for then, now in zip(before, last, strict=True)
    )
    return operations <= MAX_OPERATIONS and largest <= MAX_BYTES


def _count(method: HistoryMethod, job: Job, length: int, events: int) -> tuple[Cost, int]:
    generator = np.random.default_rng(length)
    history = generated_history(method, job, events, generator)
    reads = []
    with torch.no_grad():
        with OperationCounter() as compress:
            memory = method.compress(history)
        largest = compress.largest
        for count in CANDIDATES:
            candidates = generated_candidates(method, job, count, generator)
            with OperationCounter() as read:
                method.read(memory, candidates)
            reads.append(read.total)
            largest = max(largest, read.largest)
    fewer, more = CANDIDATES
    each = max(0, round((reads[1] - reads[0]) / (more - fewer)))
    cost = Cost(
        length=length,
        events=events,
        compress=compress.total,
        read_request=max(0, reads[0] - each * fewer),
        read_candidate=each,
        memory_bytes=memory_bytes(memory),
    )
    return cost, largest


def memory_bytes(memory: Any) -> int:
    """Bytes of all tensors in what ``compress`` returns; one that is held twice counts once."""
    held = {(t.data_ptr(), t.shape): t.numel() * t.element_size() for t in _tensors(memory)}
    return sum(held.values())


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif dataclasses.is_dataclass(node):
        for field in dataclasses.fields(node):
            yield from _tensors(getattr(node, field.name))
    elif isinstance(node, dict):
        for value in node.values():
            yield from _tensors(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _tensors(value)


def generated_history(
    method: HistoryMethod, job: Job, events: int, generator: np.random.Generator
) -> History:
    """One request's history of so many items of the job's data, drawn by popularity."""
    items = _draw_items(job, events, generator)
    age = np.sort(generator.random(events))[::-1] * SPAN
    return History(
        offsets=torch.tensor([0, events]),
        events=_values(job, events, generator),
        codes=torch.from_numpy(job.items.codes[items].astype(np.int64)),
        vectors=_vectors(method, job, items, "history"),
        age=torch.from_numpy(age.astype(np.float32)),
        features=_features(method, job, items),
        type=torch.from_numpy(generator.integers(0, job.spec.event_types, events)),
        placed=torch.from_numpy(job.items.placed[items]),
    )


def generated_candidates(
    method: HistoryMethod, job: Job, count: int, generator: np.random.Generator
) -> Candidates:
    """So many candidates of one request, drawn likewise."""
    items = _draw_items(job, count, generator)
    return Candidates(
        offsets=torch.tensor([0, count]),
        values=_values(job, count, generator),
        codes=torch.from_numpy(job.items.codes[items].astype(np.int64)),
        vectors=_vectors(method, job, items, "candidate"),
        request=torch.zeros(count, dtype=torch.int64),
        features=_features(method, job, items),
    )


def _draw_items(job: Job, count: int, generator: np.random.Generator) -> np.ndarray:
    weights = job.data.items["train_count"].to_numpy().astype(np.float64)
    weights[0] = 0.0  # the unknown item
    if not weights.any():
        weights[1:] = 1.0
    return generator.choice(len(weights), size=count, p=weights / weights.sum())


def _values(job: Job, rows: int, generator: np.random.Generator) -> Tensor:
    values = generator.standard_normal((rows, job.config.tables.dim), dtype=np.float32)
    return torch.from_numpy(values)


def _vectors(method: HistoryMethod, job: Job, items: np.ndarray, side: str) -> Tensor | None:
    if job.semantics is None or side not in method.vector_sides(job.config.method_config()):
        return None
    return torch.from_numpy(job.semantics.vectors[items].astype(np.float32))


def _features(method: HistoryMethod, job: Job, items: np.ndarray) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(job.items.single[name][items].astype(np.int64))
        for name in method.item_features(job.config.method_config())
    }
