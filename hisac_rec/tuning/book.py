"""The trials of one model: an Optuna study in a journal file, which goes on where it stopped."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from hisac_rec.tuning.space import Search, Values

RANDOM_TRIALS = 8
"""Trials at random, the defaults among them, before the sampler models what it has seen."""

PRUNE_AFTER = 5
"""Complete trials that a median is taken of before any trial is stopped for it."""

State = Literal["complete", "pruned", "failed"]

STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class TrialRow:
    """One finished trial.

    Args:
        number: 0 is the model file's own values.
        state: complete; pruned: stopped below the median of the others; failed.
        value: best validation metric of its evaluations; None where it failed.
        seconds: wall clock.
        evaluations: validations that were run.
        values: of the searched keys.
        metrics: all validation metrics at the best evaluation.
        error: why it failed.
    """

    number: int
    state: State
    value: float | None
    seconds: float
    evaluations: int
    values: Values
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Trial:
    """A trial to run: its number, its values and an empty folder for it."""

    number: int
    values: Values
    folder: Path


class TrialBook:
    """Gives out trials and writes down what became of them. Held by rank 0 alone.

    Each trial's sampler is seeded by ``seed`` and the trial's number, so a search that was cut
    off proposes what it would have proposed anyway.

    Args:
        folder: of the model; holds the journal and the trials' runs.
        search: what is searched.
        seed: of the sampler.
        prune: stop trials that fall below the median of the others.
    """

    def __init__(self, folder: Path, search: Search, *, seed: int, prune: bool) -> None:
        self._folder, self._search, self._seed = folder, search, seed
        self._distributions = {k: d.distribution() for k, d in search.dimensions.items()}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruner: BasePruner = MedianPruner(PRUNE_AFTER) if prune else NopPruner()
        self._study = optuna.create_study(
            study_name=search.name,
            storage=JournalStorage(JournalFileBackend(str(folder / "trials.journal"))),
            direction="minimize" if search.metric == "logloss" else "maximize",
            pruner=pruner,
            load_if_exists=True,
        )
        # What an earlier process was at when it was cut off: run again, see _finished.
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)
        self._open: optuna.Trial | None = None
        self._evaluations = 0

    def ask(self, trials: int) -> Trial | None:
        """The next trial, or None after ``trials`` of them."""
        number = len(self._finished())
        if number >= trials:
            return None
        waiting = self._study.get_trials(states=(TrialState.WAITING,))
        if number == 0 and not waiting:
            own = self._search.defaults()
            dimensions = self._search.dimensions
            self._study.enqueue_trial({key: dimensions[key].encode(own[key]) for key in own})
        # By its number: the sampler keeps no state that a new process would lack.
        (seed,) = np.random.SeedSequence([self._seed, number]).generate_state(1)
        self._study.sampler = TPESampler(seed=int(seed), n_startup_trials=RANDOM_TRIALS)
        self._open, self._evaluations = self._study.ask(self._distributions), 0
        run = self._folder / "runs" / str(number)
        if run.exists():
            shutil.rmtree(run)
        return Trial(number, self._decode(self._open.params), run)

    def report(self, value: float, *, last: bool) -> bool:
        """Note an evaluation of the open trial; True where it is to be stopped.

        Args:
            value: the metric that decides.
            last: no further evaluation follows, so stopping would save nothing.
        """
        trial = self._opened()
        trial.report(value, step=self._evaluations)
        self._evaluations += 1
        return not last and trial.should_prune()

    def finish(
        self,
        state: State,
        *,
        seconds: float,
        metrics: dict[str, float] | None = None,
        error: str = "",
    ) -> None:
        """Close the open trial.

        Args:
            state: what became of it.
            seconds: wall clock.
            metrics: of its best evaluation, where it is complete.
            error: why it failed.
        """
        trial, self._open = self._opened(), None
        if state == "failed":
            error = error or "no reason was given"
        notes = {"seconds": seconds, "metrics": metrics or {}, "error": error}
        for name, note in notes.items():
            trial.set_user_attr(name, note)
        if state == "complete" and metrics is not None:
            self._study.tell(trial, metrics[self._search.metric])
        else:
            states = {name: key for key, name in STATES.items()}
            self._study.tell(trial, state=states[state])

    def rows(self) -> list[TrialRow]:
        """All finished trials, in order."""
        return [self._row(number, trial) for number, trial in enumerate(self._finished())]

    def _finished(self) -> list[FrozenTrial]:
        """All but those that were cut off: they have failed without an error."""
        trials = self._study.get_trials(deepcopy=False, states=tuple(STATES))
        return [t for t in trials if t.state != TrialState.FAIL or t.user_attrs.get("error")]

    def _row(self, number: int, trial: FrozenTrial) -> TrialRow:
        seen = trial.intermediate_values.values()
        best = min if self._search.metric == "logloss" else max
        return TrialRow(
            number=number,
            state=STATES[trial.state],
            value=trial.value if trial.state == TrialState.COMPLETE else best(seen, default=None),
            seconds=trial.user_attrs["seconds"],
            evaluations=len(seen),
            values=self._decode(trial.params),
            metrics=trial.user_attrs["metrics"],
            error=trial.user_attrs["error"],
        )

    def _decode(self, parameters: Values) -> Values:
        dimensions = self._search.dimensions
        return {key: dimensions[key].decode(parameters[key]) for key in dimensions}

    def _opened(self) -> optuna.Trial:
        if self._open is None:
            raise RuntimeError("no trial is open: call ask() first")
        return self._open
