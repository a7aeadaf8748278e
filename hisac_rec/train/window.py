"""The steps since the last log line, and what they say of all ranks together.

Nothing is asked of the device and nothing is sent between two log lines.
"""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor

from hisac_rec.data.tasks import MAIN, Task
from hisac_rec.errors import UserError
from hisac_rec.train.coverage import Coverage
from hisac_rec.train.distributed import Ranks, gather_numbers
from hisac_rec.train.feed import Fed
from hisac_rec.train.metrics_log import memory_gib

log = logging.getLogger(__name__)


class Window:
    """Sums since the last log line of this rank; :meth:`close` brings in the others.

    Args:
        ranks: this process.
        coverage: told of every step.
        tasks: what is learned; of one task, its loss is the loss.
    """

    def __init__(self, ranks: Ranks, coverage: Coverage, tasks: tuple[Task, ...] = (MAIN,)) -> None:
        self._ranks, self._coverage = ranks, coverage
        self._tasks = tasks if len(tasks) > 1 else ()
        self.restart()

    def restart(self) -> None:
        """Forget the steps so far: time that was not training is not counted."""
        self._started = time.perf_counter()
        self._fed: list[Fed] = []
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []

    def note(self, fed: Fed, loss: Tensor, gradient_norm: Tensor) -> None:
        """A step is done.

        Args:
            fed: its batch.
            loss: [], of K > 1 tasks [1 + K] (:meth:`~hisac_rec.ranker.ranker.Ranker.forward`).
            gradient_norm: [].
        """
        self._fed.append(fed)
        self._losses.append(loss.detach())
        self._norms.append(gradient_norm)
        if fed.batch.num_candidates:  # a rank that has run out works on a request that is none
            self._coverage.note(fed.batch)

    def close(self, step: int) -> dict[str, float]:
        """Numbers of the window over all ranks, and begin the next; {} without a step.

        Called on every rank, which all get the same numbers: ``docs/training.md`` lists them.

        Args:
            step: the last one done.

        Raises:
            UserError: a loss is not finite; on the rank that had it, naming step and rows.
        """
        fed, seconds = self._fed, time.perf_counter() - self._started
        if not fed:
            return {}
        # One copy from the device for the whole window, not one a step.
        losses = torch.stack(self._losses).double()
        whole = torch.cat([losses.flatten(), torch.stack(self._norms).double()]).cpu()
        losses, norms = whole[: -len(fed)].view_as(losses), whole[-len(fed) :]
        sums: list[float] = []
        if self._tasks:
            of_tasks = losses[:, 1:].sum(0).tolist()
            sums = [*of_tasks, *_labelled(self._tasks, fed)]
            losses = losses[:, 0]
        self.restart()
        mine = [
            float(losses.sum()),
            float((~losses.isfinite()).sum()),
            float(sum(one.batch.num_events for one in fed)),
            float(sum(one.batch.num_candidates for one in fed)),
            sum(one.waited for one in fed),
            sum(one.held_up for one in fed),
            memory_gib(self._ranks.device),
            *sums,
        ]
        loss, bad, events, candidates, waited, held_up, memory, *sums_of = gather_numbers(mine).T
        if bad.any():
            self._stop_not_finite(step - len(fed), fed, losses)
        return {
            "loss": float(loss.mean()) / len(fed),
            **self._losses_of_tasks([float(one.sum()) for one in sums_of]),
            "gradient_norm": float(norms.mean()),
            "gradient_norm_max": float(norms.max()),
            "candidates_per_second": float(candidates.sum()) / seconds,
            "events_per_second": float(events.sum()) / seconds,
            "data_wait_share": float(waited.mean()) / seconds,
            "data_wait_share_max": float(waited.max()) / seconds,
            "rank_wait_share": float(held_up.mean()) / seconds,
            "slowest_rank": float(held_up.argmin()),
            "work_imbalance": float(candidates.max() / max(1.0, float(candidates.mean()))),
            "memory_gib": float(memory.max()),
        } | {f"coverage/{table}": share for table, share in self._coverage.shares().items()}

    def _losses_of_tasks(self, sums: list[float]) -> dict[str, float]:
        """Task -> mean loss over the candidates of the window that it applies to, if any."""
        count = len(self._tasks)
        both = zip(self._tasks, sums[:count], sums[count:], strict=True)
        return {f"loss/{task.name}": total / rows for task, total, rows in both if rows}

    def _stop_not_finite(self, before: int, fed: list[Fed], losses: Tensor) -> None:
        bad = (~losses.isfinite()).nonzero()
        where = "on another rank"
        if len(bad):
            index = int(bad[0])
            rows = fed[index].batch.request_rows
            where = (
                f"at step {before + index + 1} on rank {self._ranks.rank}: {len(rows)} requests, "
                f"the first of user {int(rows[0, 0])} at time {int(rows[0, 1])}, the last of user "
                f"{int(rows[-1, 0])} at time {int(rows[-1, 1])}"
            )
        raise UserError(
            f"the loss is not finite {where}; lower train.dense_lr or train.sparse_lr, or set "
            "train.clip_norm. The last good checkpoint is kept"
        )


def _labelled(tasks: tuple[Task, ...], fed: list[Fed]) -> list[float]:
    """How many candidates each task applies to."""
    found = []
    for place, task in enumerate(tasks):
        batches = [one.batch for one in fed]
        labels = [batch.tasks[task.name] if place else batch.labels for batch in batches]
        found.append(float(sum(int((~of.isnan()).sum()) for of in labels)))
    return found


def log_line(step: int, epoch: float, values: dict[str, float]) -> None:
    """One line for people."""
    log.info(
        "step %d, epoch %.2f: loss %.4f, %s candidates/s, %s events/s, "
        "%.0f %% waiting for data, %.1f GiB",
        step,
        epoch,
        values["loss"],
        f"{values['candidates_per_second']:,.0f}",
        f"{values['events_per_second']:,.0f}",
        100 * values["data_wait_share"],
        values["memory_gib"],
    )
    of_tasks = {name: value for name, value in values.items() if name.startswith("loss/")}
    if of_tasks:
        shown = (f"{name.removeprefix('loss/')} {value:.4f}" for name, value in of_tasks.items())
        log.info("  loss of each task: %s", ", ".join(shown))
