"""The training loop, read top-down.

Legend: N candidates of a step over all ranks.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import closing
from typing import TypeAlias

import torch
from torch import Tensor

from hisac_rec.checkpoints.restore import whole_state
from hisac_rec.checkpoints.saving import Keep, Position, load_checkpoint
from hisac_rec.data.contract import Split
from hisac_rec.data.tasks import training_rate
from hisac_rec.errors import AskedToEndError
from hisac_rec.evaluation.deciding import deciding, undefined_in_words
from hisac_rec.evaluation.health import concerns
from hisac_rec.planning.plan_io import Plan
from hisac_rec.progress import progress
from hisac_rec.train.coverage import Coverage
from hisac_rec.train.distributed import Ranks
from hisac_rec.train.feed import Fed, Feeder
from hisac_rec.train.job import Job
from hisac_rec.train.metrics_log import MetricsLog
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import Batches, make_pipeline, predict, steps, training_sample
from hisac_rec.train.reading import Reading
from hisac_rec.train.replicas import sync_replicas
from hisac_rec.train.run import RunFolder, checkpoint_files, checkpoint_manifest
from hisac_rec.train.summary import Progress
from hisac_rec.train.unknown import fill_untouched
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
        self.on_training: dict[str, float] = {}
        """The same metrics on a sample of the training rows, and those at the best evaluation."""
        self.best_on_training: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.scored: tuple[int, float] | None = None
        self.coverage = Coverage(job.spec)
        self.window = Window(ranks, self.coverage, job.spec.tasks)
        self.after_step: Callable[[], None] = lambda: None
        self._metrics_log: MetricsLog | None = None
        self._saved = -1
        """Step of the last checkpoint."""
        self._total = job.data.manifest.splits["train"].candidates
        self._part = 0
        """Parts of the training after which an evaluation was due."""
        self._budget = min(self.config.epochs * self._total, self.config.max_candidates or 1 << 62)

    def run(self) -> dict[str, float]:
        """All epochs, with evaluation, checkpoints and early stop."""
        self._metrics_log = MetricsLog(self.folder.root, self.ranks.first)
        self._part = self._parts(self._seen())
        if self.position.owed:
            self._evaluate()
        while self.position.epoch < self.config.epochs and not self._is_over():
            self._epoch()
        self.checkpoints.wait()
        self._warn()
        return self.metrics_of_best()

    def _epoch(self) -> None:
        epoch, start = self.position.epoch, self.position
        feeder = self.batches.train(
            epoch,
            start.batch,
            self.reading.before,
            lambda batches, candidates: self._is_evaluation_due(start, batches, candidates),
        )
        self.optimizers.set_progress(self.position.step, self._progress())
        self.coverage.clear()
        self.window.restart()
        title = f"epoch {epoch + 1}/{self.config.epochs}"
        with progress(title, self._total, "candidates") as advance, closing(feeder):
            advance(self.position.candidates)
            while True:
                self._steps(feeder, advance)
                self._log()
                if not feeder.paused or self._is_spent():
                    break
                self._evaluate()
                if self._should_stop():
                    return
                feeder.paused = False
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

    def _steps(self, feeder: Feeder, advance: Callable[[int], None]) -> None:
        """Train until the feeder pauses or ends, or the training does. Nothing is in flight between
        ranks afterwards, so that an evaluation may use the model.
        """
        pipeline = make_pipeline(self.model, self.optimizers, self.ranks, self.config.accumulate)
        for fed, loss, _ in steps(pipeline, feeder):
            self._count(fed, loss)
            self.checkpoints.check()
            self.after_step()
            advance(fed.candidates)
            save = self._is_due(self.config.checkpoint_every)
            # Logging looks for losses that are not finite: always before weights are kept.
            if save or self._is_due(self.config.log_every):
                self._log()
            if save and not feeder.drained:  # else an evaluation follows, and saves
                self._save()
            if self._is_spent():
                break
            if feeder.stopping and self.position.batch % self.config.accumulate == 0:
                self._end_here()
        pipeline.detach()

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

    def _is_evaluation_due(self, start: Position, batches: int, candidates: int) -> bool:
        """After so many further batches: never while gradients wait for a step to be whole."""
        if self.config.eval_every:
            return (start.step + batches) % self.config.eval_every == 0
        if (start.batch + batches) % self.config.accumulate:
            return False
        seen = start.epoch * self._total + min(start.candidates + candidates, self._total)
        before, self._part = self._part, self._parts(seen)
        return self._part > before

    def _parts(self, seen: int) -> int:
        """Parts of the training that are done after so many candidates."""
        return int(seen / max(1, self._budget) * self.config.evaluations + 1e-9)

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
        self._fill_untouched()
        try:
            self.metrics, self.on_training = self._validate("valid"), self._validate("train")
        except AskedToEndError:
            self.position = self.position.model_copy(update={"owed": True})
            self._save()
            self.checkpoints.wait()
            raise self._asked_to_end() from None
        self.position = self.position.model_copy(
            update={"evaluated": self.position.step, "owed": False}
        )
        improved = self._is_best()
        shown = [f"{name} {_shown(self.metrics.get(name))}" for name in ("auc", "gauc", "logloss")]
        log.info(
            "step %d: valid %s%s; training rows auc %s, logloss %s; %.1f s",
            self.position.step,
            ", ".join(shown),
            " (best)" if improved else "",
            _shown(self.on_training.get("auc")),
            _shown(self.on_training.get("logloss")),
            time.perf_counter() - started,
        )
        of_tasks = [f"{k} {_shown(v)}" for k, v in self.metrics.items() if "/" in k]
        if of_tasks:
            log.info("  %s", ", ".join(of_tasks))
        self._write("valid", self.metrics)
        self._write("train_sample", self.on_training)
        self._save()
        if self.watcher is not None:
            self.watcher(self.position, self.metrics)
        self.window.restart()

    def _fill_untouched(self) -> None:
        """SGD keeps no state that would tell which rows a step has touched."""
        if self.config.unknown_rate and self.config.sparse_optimizer != "sgd":
            fill_untouched(self.model, self.optimizers)

    def _validate(self, split: Split) -> dict[str, float]:
        """The metrics of the validation split, or of a sample of as many training rows."""
        if not self.job.data.manifest.splits[split].requests:
            return {}
        if split == "train":
            feeder = self.batches.sample("train", training_sample(self.job.data))
        else:
            feeder = self.batches.in_order(split)
        predictions = predict(self.model, self.optimizers, self.ranks, feeder)
        return validate(predictions, self.job.spec.tasks)

    def _is_best(self) -> bool:
        """Take note of the metric that decides; True where it has never been better.

        Where none is defined, the newest evaluation is the best, and nothing stops early.
        """
        wanted = self.config.metric
        name = deciding(self.metrics, wanted)
        if not self.best and (text := undefined_in_words(self.metrics, wanted, "valid")):
            log.warning("%s", text)
        if name is None:
            self.best = {"better": 0.0, "since": 0.0} | self.metrics
            self.best_on_training = self.on_training
            return True
        better = -self.metrics[name] if name == "logloss" else self.metrics[name]
        self.scored = (self.position.step, better)
        if self.best and better <= self.best["better"]:
            self.best = self.best | {"since": self.best["since"] + 1}
            return False
        self.best = {"better": better, "since": 0.0} | self.metrics
        self.best_on_training = self.on_training
        return True

    def _warn(self) -> None:
        """Say what is wrong with the best checkpoint."""
        constant = {}
        if (rate := self.best.get("rate")) is not None:
            guess = training_rate(self.job.spec.tasks[0], self.job.data.manifest)
            loss = -rate * math.log(guess) - (1 - rate) * math.log1p(-guess)
            constant = {"the mean training label": loss}
        for text in concerns(self.best, self.best_on_training or None, constant):
            log.warning("%s", text)

    def _save(self) -> None:
        """Begin a checkpoint of this step; what is written is the state as it is now."""
        self.watch.beat("save a checkpoint")
        ranks, plan, scored = self.ranks, self.plan, self.scored
        score = scored[1] if scored and scored[0] == self.position.step else None
        manifest = checkpoint_manifest(
            self.job, ranks.world_size, self.position, self.metrics, self.best, score
        )
        sync_replicas(self.model)
        self._fill_untouched()
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


def _shown(value: float | None) -> str:
    """A metric in a line of the log."""
    return "undefined" if value is None else f"{value:.4f}"
