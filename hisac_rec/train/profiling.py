"""Where the time of a training step goes: ``hisac-rec train --profile``.

A few steps after the first ones are recorded by ``torch.profiler``; training goes on. Each
rank leaves a trace for a viewer (Perfetto, chrome://tracing), the first one prints a table.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule

from hisac_rec.evaluation.table import Cells, rich_table
from hisac_rec.train.distributed import Ranks

log = logging.getLogger(__name__)

SECTIONS = {
    "## next_batch ##": "wait for the next batch",
    "## wait_for_batch ##": "wait for its copy on the device",
    "## start_sparse_data_dist ##": "start to send the next ids to their tables",
    "## wait_sparse_data_dist ##": "wait for the next ids to arrive",
    "## forward ##": "forward",
    "history: compress": "  history method, compress",
    "history: read": "  history method, read",
    "interaction and over arch": "  interaction and over arch",
    "## backward ##": "backward, tables updated within",
    "## optimizer ##": "dense optimiser",
}
"""Range in the trace -> words in the table. Those with ## are TorchRec's, without the number
of the batch."""

_NUMBER = re.compile(r" \d+(?= ##$)|(#\d+|\*)$")

MIB = 1 << 20

OPERATORS = 12
"""Lines of the second table."""


class KeptForBackward:
    """Bytes that autograd saves between a forward and its backward pass, parameters left out.

    A context manager around the forward pass. Tensors that share their memory count once; what
    an operator of ours keeps outside autograd's list (routing weights of small batches) does not.
    """

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._see, lambda saved: saved)

    @property
    def bytes(self) -> int:
        """So far."""
        return sum(self._sizes.values())

    def _see(self, saved: Tensor) -> Tensor:
        whole = saved if saved._base is None else saved._base
        if not (whole.is_leaf and whole.requires_grad):
            storage = saved.untyped_storage()
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return saved

    def __enter__(self) -> KeptForBackward:
        self._hooks.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._hooks.__exit__(*raised)


class StepProfiler:
    """Records steps ``first`` to ``first + steps``; a context manager around the loop.

    Args:
        folder: of the run; traces go to ``profile/rank<k>.json.gz``.
        ranks: this process.
        first: steps left out at the start: allocations, compilations, empty caches.
        steps: how many are recorded.
    """

    def __init__(self, folder: Path, ranks: Ranks, *, first: int = 10, steps: int = 10) -> None:
        self._folder = folder / "profile"
        self._ranks = ranks
        self._steps = steps
        activities = [ProfilerActivity.CPU]
        if ranks.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=max(0, first - 2), warmup=min(2, first), active=steps, repeat=1),
            on_trace_ready=self._finish,
        )
        self._done = False
        self._kept = KeptForBackward()
        self._number, self._weighed = 0, first - 1
        self._weighing = False

    def __enter__(self) -> StepProfiler:
        self._profile.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._weigh(False)
        self._profile.stop()
        if kind is None and not self._done and self._ranks.first:
            log.warning("training ended before the steps that --profile records")

    def step(self) -> None:
        """Call after every step."""
        self._profile.step()
        self._number += 1
        # The step before the recorded ones: looking at every saved tensor takes time.
        self._weigh(self._number == self._weighed)

    def _weigh(self, now: bool) -> None:
        if now == self._weighing:
            return
        self._weighing = now
        if now:
            self._kept.__enter__()
        else:
            self._kept.__exit__(None, None, None)

    def _finish(self, found: profile) -> None:
        self._done = True
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"rank{self._ranks.rank}.json.gz"
        found.export_chrome_trace(str(path))
        if self._ranks.first:
            console = Console()
            for cells in self._tables(found):
                console.print(rich_table(cells))
            log.info("trace of %d steps written to %s", self._steps, path)

    def _tables(self, found: profile) -> list[Cells]:
        events = {event.key: event for event in found.key_averages()}
        spent: dict[str, float] = defaultdict(float)  # ms a step
        for key, event in events.items():
            spent[_NUMBER.sub("", key)] += event.cpu_time_total / 1e3 / self._steps
        whole = spent["ProfilerStep"]
        sections = [
            [title, f"{spent[key]:.1f}", f"{spent[key] / whole:.0%}"]
            for key, title in SECTIONS.items()
            if key in spent
        ]
        on_device = self._ranks.device.type == "cuda"

        def own(event: torch.autograd.profiler_util.FunctionEventAvg) -> float:
            spent = event.self_device_time_total if on_device else event.self_cpu_time_total
            return float(spent)

        ranges = {*SECTIONS, "ProfilerStep"}
        operators = [
            event
            for key, event in events.items()
            if own(event) > 0 and not key.startswith("##") and _NUMBER.sub("", key) not in ranges
        ]
        operators.sort(key=own, reverse=True)
        rows = [
            [e.key[:44], f"{own(e) / self._steps / 1e3:.1f}", f"{e.count / self._steps:.0f}"]
            for e in operators[:OPERATORS]
        ]
        return [
            Cells(
                title=f"A training step of {whole:.1f} ms",
                header=["part", "ms", "share"],
                rows=sections,
                caption="Time of this process, waiting included; parts of the forward indented. "
                f"Kept for the backward pass: {self._kept.bytes / MIB:,.1f} MiB.",
            ),
            Cells(
                title="Operators by their own time" + (" on the device" if on_device else ""),
                header=["operator", "ms a step", "calls a step"],
                rows=rows,
            ),
        ]
