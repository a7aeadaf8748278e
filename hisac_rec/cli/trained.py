"""What the commands that read a trained run have in common. Imports lazily, as they do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hisac_rec.data.contract import PreparedData
    from hisac_rec.planning.config import PlannerConfig
    from hisac_rec.train.run import RunFolder


def open_run(run_folder: Path, data: Path | None) -> tuple[RunFolder, PreparedData]:
    """A run and the data it was trained on, or ``data`` where that has moved.

    Raises:
        UserError: the stack does not work, or the folder is no run.
    """
    from hisac_rec.doctor import check_stack
    from hisac_rec.train.run import RunFolder

    check_stack()
    folder = RunFolder(run_folder)
    folder.config()
    return folder, folder.data(data)


def require_split(split: str) -> None:
    """Refuse a split that no data set has.

    Raises:
        UserError: names the nearest one.
    """
    from hisac_rec.data.contract import SPLITS
    from hisac_rec.errors import UserError, did_you_mean

    if split not in SPLITS:
        raise UserError(f"--split {split}: no such split{did_you_mean(split, SPLITS)}")


def cluster(planner: str | None) -> PlannerConfig | None:
    """The planner config of ``--planner``, a file or the name of a shipped one."""
    from hisac_rec.config import load_config
    from hisac_rec.planning.config import PlannerConfig
    from hisac_rec.shipped import find_config

    if planner is None:
        return None
    return load_config(PlannerConfig, find_config("launch/planners", planner))
