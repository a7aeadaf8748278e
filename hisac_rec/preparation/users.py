"""Write the users of a source, block by block, so that a killed run loses only a few blocks.

Every ``SAVE_BLOCKS`` blocks all part files are closed and what was counted is written down. Both
follow from the events alone, so a run that was killed and went on writes the same bytes.
"""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hisac_rec.data.contract import SPLITS, FurtherTask, Split, SplitCounts, split_schema
from hisac_rec.errors import UserError
from hisac_rec.preparation.blocks import (
    CutRules,
    EventBlock,
    SplitRows,
    cut,
    visible_history,
    without_later_splits,
    without_training,
)
from hisac_rec.preparation.first_events import FirstEvents, without_candidates
from hisac_rec.preparation.source import Source
from hisac_rec.preparation.work import WorkFolder
from hisac_rec.preparation.writer import SplitWriter, TrainTally
from hisac_rec.progress import progress

log = logging.getLogger(__name__)

SAVE_BLOCKS = 4
"""Blocks between two savings: of a raw log about 8 million events, some ten seconds."""


def write_splits(
    source: Source, work: WorkFolder, cold: NDArray[np.bool_], origin: str
) -> tuple[dict[Split, SplitCounts], TrainTally, list[FurtherTask]]:
    """Write the part files of all splits, from where an earlier start stopped.

    Args:
        source: the events.
        work: where part files and what is saved go.
        cold: [items] True where an item's training events are left out.
        origin: the definition's file, for messages.

    Raises:
        UserError: train or test have no request, or training has no label of a further task.
    """
    names = [feature.name for feature in source.user_features]
    schema = split_schema(names, oracle=source.has_oracle, tasks=source.tasks)
    tally = TrainTally(source.items)
    writers = {split: SplitWriter(work.building / split, schema) for split in SPLITS}
    saved = work.root / "users.npz"
    state = _load(saved, tally, writers)
    if not state["done"]:
        _write(source, work, cold, writers, tally, state["blocks"], saved)
    counts: dict[Split, SplitCounts] = {split: w.counts for split, w in writers.items()}
    for split, count in counts.items():
        if count.requests:
            continue
        empty = f"{origin}: the {split} split is empty (no request)"
        mend = "change [split], requests.where or history.min_events"
        if count.first_events == 1:
            empty = (
                f"{origin}: the {split} split is empty: all its positives are the first event of "
            )
            empty += "their item"
            mend = 'set requests.negatives.first_events = "keep", or a longer window'
        if split != "valid":
            raise UserError(f"{empty}; {mend}")
        log.warning("%s, so no training on it can be judged as it goes; %s", empty, mend)
    return counts, tally, [_further_task(name, writers, origin) for name in source.tasks]


def _further_task(name: str, writers: dict[Split, SplitWriter], origin: str) -> FurtherTask:
    """What was written of a further task; it must apply to some candidate of training."""
    labelled = {split: writer.labelled[name] for split, writer in writers.items()}
    for split, rows in labelled.items():
        if rows:
            continue
        key = f"{origin}: key 'requests.tasks.{name}'"
        empty = f"{key}: is NULL for all candidates of the {split} split"
        if split == "train":
            mend = "change the expression or leave the task out"
            raise UserError(f"{empty}, so there is nothing to learn; {mend}")
        log.warning("%s, so nothing can be measured there", empty)
    positives = {split: writer.task_positives[name] for split, writer in writers.items()}
    return FurtherTask(name=name, labelled=labelled, positives=positives)


def cut_splits(
    block: EventBlock, rules: dict[Split, CutRules], cold: NDArray[np.bool_]
) -> tuple[EventBlock, dict[Split, SplitRows]]:
    """The rows of all splits of some users.

    Args:
        block: every event of the users.
        rules: how requests are cut.
        cold: [items] True where an item's training events are left out.

    Returns:
        The events that are left, and split -> rows.
    """
    block = _without_cold(block, cold)
    rows = {}
    for index, split in enumerate(SPLITS):
        known = without_later_splits(block, index)
        rows[split] = cut(known, index, rules[split], visible_history(known))
    return block, rows


def _without_cold(block: EventBlock, cold: NDArray[np.bool_]) -> EventBlock:
    return without_training(block, cold) if cold.any() else block


def _write(
    source: Source,
    work: WorkFolder,
    cold: NDArray[np.bool_],
    writers: dict[Split, SplitWriter],
    tally: TrainTally,
    blocks: int,
    saved: Path,
) -> None:
    negatives = source.negatives(_without_cold(block, cold) for block in source.blocks())
    with ExitStack() as stack:
        for writer in writers.values():
            stack.enter_context(writer)
        book = stack.enter_context(work.stages.measure("write users"))
        advance = stack.enter_context(progress("write users", source.users - 1, "users"))
        rules = {split: source.rules(split) for split in SPLITS}
        for block in source.blocks(blocks):
            users = int(np.count_nonzero(np.diff(block.user, prepend=0)))
            kept, logged = cut_splits(block, rules, cold)
            rows = logged
            if negatives is not None:
                logged = _without_first_events(logged, negatives.first, writers, rules)
                rows = negatives.sampler.add(logged)
            for split, writer in writers.items():
                writer.write(rows[split], source.user_values)
            tally.add(kept, logged["train"], rows["train"])
            blocks += 1
            if blocks % SAVE_BLOCKS == 0:
                _save(saved, tally, writers, blocks, done=False)
                book()
            advance(users)
        _save(saved, tally, writers, blocks, done=True)


def _without_first_events(
    logged: dict[Split, SplitRows],
    first: FirstEvents,
    writers: dict[Split, SplitWriter],
    rules: dict[Split, CutRules],
) -> dict[Split, SplitRows]:
    """Count the positives that are first events, and leave them out where they are to go."""
    kept = {}
    for at, split in enumerate(SPLITS):
        rows = logged[split]
        found = first.find(rows, at)
        writers[split].count_first(int(found.sum()), int((rows.label > 0).sum()))
        if first.drop and found.any():
            rows = without_candidates(rows, found, rules[split].max_length)
        kept[split] = rows
    return kept


def _save(
    path: Path, tally: TrainTally, writers: dict[Split, SplitWriter], blocks: int, *, done: bool
) -> None:
    """Close all part files and write down what they hold."""
    state = {
        "blocks": blocks,
        "done": done,
        "writers": {split: writer.close_file() for split, writer in writers.items()},
        "candidates_max": tally.candidates_max,
    }
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        np.savez(
            file,
            state=np.array(json.dumps(state)),
            train_count=tally.train_count,
            first_time=tally.first_time,
            history_ends=tally.history_ends,
        )
    temporary.replace(path)


def _load(path: Path, tally: TrainTally, writers: dict[Split, SplitWriter]) -> dict[str, Any]:
    """Set tally and writers to what was saved last; part files begun since are removed."""
    state: dict[str, Any] = {"blocks": 0, "done": False, "writers": {}}
    if path.is_file():
        with np.load(path) as arrays:
            state = json.loads(str(arrays["state"]))
            tally.train_count = arrays["train_count"]
            tally.first_time = arrays["first_time"]
            tally.history_ends = arrays["history_ends"]
            tally.candidates_max = state["candidates_max"]
    for split, writer in writers.items():
        writer.go_on_from(state["writers"].get(split))
    return state
