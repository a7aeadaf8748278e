"""The training loop, read top-down.

Legend: N candidates of a step over all ranks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from hisac_rec.checkpoints.restore import whole_state
from hisac_rec.checkpoints.saving import Keep, Position, load_checkpoint
from hisac_rec.errors import AskedToEndError
from hisac_rec.planning.plan_io import Plan
from hisac_rec.progress import progress
from hisac_rec.train.coverage import Coverage
from hisac_rec.train.distributed import Ranks
from hisac_rec.train.feed import Fed
from hisac_rec.train.job import Job
from hisac_rec.train.metrics_log import MetricsLog
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import Batches, make_pipeline, predict, steps
from hisac_rec.train.reading import Reading
from hisac_rec.train.replicas import sync_replicas
from hisac_rec.train.run import RunFolder, checkpoint_files, checkpoint_manifest
from hisac_rec.train.summary import Progress
from hisac_rec.train.validation import validate
from hisac_rec.train.watch import Bystander
from hisac_rec.train.window import Window, log_line

log = logging.getLogger(__name__)

Watcher: TypeAlias = Callable[[Position, dict[str, float]], None]
"""Told of every evaluation: where training stands, and the validation metrics."""


class Trainer:
    """State of a training run; :meth:`run` is the loop."""

    def __init__(
        self,
        job: Job,
        ranks: Ranks,
        folder: RunFolder,
        model: torch.nn.Module,
        optimizers: Optimizers,
        watcher: Watcher | None = None,
        watch: Bystander | None = None,
    ) -> None:
        self.job, self.ranks, self.folder = job, ranks, folder
        self.watch = watch or Bystander()
        self.config = job.config.train
        self.model, self.optimizers, self.watcher = model, optimizers, watcher
        self.batches = Batches(job, ranks, self.watch)
        self.plan: Plan | None = None
        self.checkpoints = folder.checkpoints(
            Keep(self.config.keep_checkpoints, self.config.keep_best),
            per_host=ranks.per_host if self.config.checkpoint_async else None,
        )
        self.position = Position()
        self.reading = Reading()
        self.metrics: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.scored: tuple[int, float] | None = None
        self.coverage = Coverage(job.spec)
        self.window = Window(ranks, self.coverage, job.spec.tasks)
        self.after_step: Callable[[], None] = lambda: None
        self._metrics_log: MetricsLog | None = None
        self._saved = -1
        """Step of the last checkpoint."""
        self._total = job.data.manifest.splits["train"].candidates
        self._budget = min(self.config.epochs * self._total, self.config.max_candidates or 1 << 62)

    def run(self) -> dict[str, float]:
        """All epochs, with evaluation, checkpoints and early stop."""
        self._metrics_log = MetricsLog(self.folder.root, self.ranks.first)
        if self.position.owed:
            self._evaluate()
        while self.position.epoch < self.config.epochs and not self._is_over():
            self._epoch()
        self.checkpoints.wait()
        return self.metrics_of_best()

    def _epoch(self) -> None:
        epoch = self.position.epoch
        feeder = self.batches.train(epoch, self.position.batch, self.reading.before)
        self.optimizers.set_progress(self.position.step, self._progress())
        pipeline = make_pipeline(self.model, self.optimizers, self.ranks, self.config.accumulate)
        self.coverage.clear()
        self.window.restart()
        title = f"epoch {epoch + 1}/{self.config.epochs}"
        with progress(title, self._total, "candidates") as advance:
            advance(self.position.candidates)
            for fed, loss, _ in steps(pipeline, feeder):
                self._count(fed, loss)
                self.checkpoints.check()
                self.after_step()
                advance(fed.candidates)
                evaluate = self._is_due(self.config.eval_every)
                save = self._is_due(self.config.checkpoint_every)
                # Logging looks for losses that are not finite: always before weights are kept.
                if evaluate or save or self._is_due(self.config.log_every):
                    self._log()
                if evaluate:
                    pipeline.detach()
                    self._evaluate()
                    pipeline.attach()
                    if self._should_stop():
                        break
                elif save:
                    self._save()
                if self._is_spent():
                    break
                if feeder.stopping and self.position.batch % self.config.accumulate == 0:
                    self._end_here()
        pipeline.detach()
        self._log()
        if self._should_stop():
            return
        if self._is_spent():
            if not self._is_evaluated():
                self._evaluate()
            return
        at = self.position
        self.position = Position(step=at.step, epoch=epoch + 1, evaluated=at.evaluated)
        self.reading = Reading()
        if not self._is_evaluated():
            self._evaluate()
        else:  # evaluated at the epoch's last step: only the position is new
            self._save()

    def _count(self, fed: Fed, loss: Tensor) -> None:
        at = self.position
        self.position = at.model_copy(
            update={
                "step": at.step + 1,
                "batch": at.batch + 1,
                "candidates": at.candidates + fed.candidates,
            }
        )
        self.watch.beat("compute", step=at.step + 1, epoch=at.epoch)
        self.reading.note(fed.batch)
        self.window.note(fed, loss, self.optimizers.gradient_norm)
        self.optimizers.set_progress(self.position.step, self._progress())

    def _end_here(self) -> None:
        """A rank was asked to end: keep what has been learned."""
        self._log()
        if self._saved != self.position.step:
            self._save()
        self.checkpoints.wait()
        raise self._asked_to_end()

    def _asked_to_end(self) -> AskedToEndError:
        return AskedToEndError(
            f"asked to end by a signal: saved {self.checkpoints.find('last')}; go on with --resume"
        )

    def _is_evaluated(self) -> bool:
        return self.position.evaluated == self.position.step

    def _is_over(self) -> bool:
        return self._should_stop() or self._is_spent()

    def _is_due(self, every: int) -> bool:
        """True at every ``every``-th step; never for 0."""
        return every > 0 and self.position.step % every == 0

    def _seen(self) -> int:
        """Training candidates so far."""
        return self.position.epoch * self._total + min(self.position.candidates, self._total)

    def _is_spent(self) -> bool:
        """``max_candidates`` is reached: there may be more data, but not for this training."""
        return self.config.is_spent(self._seen())

    def _progress(self) -> float:
        """Share of the whole training done, in candidates."""
        return self._seen() / max(1, self._budget)

    def _log(self) -> None:
        """One line, over all ranks; also where a loss that is not finite is noticed."""
        values = self.window.close(self.position.step)
        if values:
            values["learning_rate_factor"] = self.optimizers.factor
            log_line(self.position.step, self._seen() / max(1, self._total), values)
            self._write("train", values)

    def _evaluate(self) -> None:
        """Validation metrics, early-stop state and a checkpoint."""
        started = time.perf_counter()
        self.watch.beat("evaluate")
        sync_replicas(self.model)
        feeder = self.batches.in_order("valid")
        try:
            predictions = predict(self.model, self.optimizers, self.ranks, feeder)
            metrics = validate(predictions, self.job.spec.tasks)
        except AskedToEndError:
            self.position = self.position.model_copy(update={"owed": True})
            self._save()
            self.checkpoints.wait()
            raise self._asked_to_end() from None
        self.metrics = metrics
        self.position = self.position.model_copy(
            update={"evaluated": self.position.step, "owed": False}
        )
        value = self.metrics[self.config.metric]
        better = -value if self.config.metric == "logloss" else value
        self.scored = (self.position.step, better)
        improved = not self.best or better > self.best["better"]
        if improved:
            self.best = {"better": better, "since": 0.0} | self.metrics
        else:
            self.best = self.best | {"since": self.best["since"] + 1}
        log.info(
            "step %d: valid auc %.4f, gauc %.4f, logloss %.4f%s, %.1f s",
            self.position.step,
            self.metrics["auc"],
            self.metrics["gauc"],
            self.metrics["logloss"],
            " (best)" if improved else "",
            time.perf_counter() - started,
        )
        of_tasks = [f"{k} {v:.4f}" for k, v in self.metrics.items() if "/" in k]
        if of_tasks:
            log.info("  %s", ", ".join(of_tasks))
        self._write("valid", self.metrics)
        self._save()
        if self.watcher is not None:
            self.watcher(self.position, self.metrics)
        self.window.restart()

    def _save(self) -> None:
        """Begin a checkpoint of this step; what is written is the state as it is now."""
        self.watch.beat("save a checkpoint")
        ranks, plan, scored = self.ranks, self.plan, self.scored
        score = scored[1] if scored and scored[0] == self.position.step else None
        manifest = checkpoint_manifest(
            self.job, ranks.world_size, self.position, self.metrics, self.best, score
        )
        sync_replicas(self.model)
        self.checkpoints.save(
            whole_state(self.model, self.optimizers),
            manifest,
            checkpoint_files(self.job, plan, self.reading),
        )
        self._saved = self.position.step
        self.watch.beat("compute")

    def _should_stop(self) -> bool:
        return bool(
            self.config.early_stop and self.best.get("since", 0.0) >= self.config.early_stop
        )

    def resume(self) -> None:
        """Load the last checkpoint and its position.

        Raises:
            UserError: there is none, or it does not fit.
        """
        self.watch.beat("load a checkpoint")
        path = self.checkpoints.find("last")
        expected = checkpoint_manifest(self.job, self.ranks.world_size, Position(), {}, {})
        manifest = load_checkpoint(path, self.model, self.optimizers, expected)
        self.position, self.best = manifest.position, manifest.best
        self._saved = self.position.step
        self.metrics = manifest.metrics
        dealt_anew = (manifest.world_size, manifest.loader) != (
            expected.world_size,
            expected.loader,
        )
        self.reading = Reading.load(path, dealt_anew=dealt_anew)
        if dealt_anew:
            self.position = self.position.model_copy(update={"batch": 0})
        log.info(
            "resumed from %s (step %d)%s",
            path,
            self.position.step,
            ", the rest of the epoch dealt out anew" if dealt_anew else "",
        )

    def progress(self) -> Progress:
        """How far training has come, for the summary."""
        return Progress(
            step=self.position.step,
            epoch=self._seen() / max(1, self._total),
            candidates=self._seen(),
            best=self.metrics_of_best(),
            stopped_early=self._should_stop(),
        )

    def metrics_of_best(self) -> dict[str, float]:
        """Validation metrics of the best checkpoint."""
        main = {key: self.best[key] for key in ("auc", "gauc", "logloss") if key in self.best}
        return main | {key: value for key, value in self.best.items() if "/" in key}

    def _write(self, group: str, values: dict[str, float]) -> None:
        if self._metrics_log is not None:
            self._metrics_log.write(self.position.step, group, values)

    def close(self) -> None:
        """Close files."""
        if self._metrics_log is not None:
            self._metrics_log.close()
