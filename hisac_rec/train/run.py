"""The folder of one run: everything needed to evaluate or resume it.

::

    config.toml           the resolved model file
    run.json              data, plan, versions, command
    plan.json             the sharding plan
    warm_start.md         what was kept of the run it was started from, where there was one
    checkpoints/          step-*/, unless run.json says that they lie elsewhere
    metrics.jsonl         one line per log line and evaluation
    tensorboard/          the same as curves
    heartbeat.json        what every rank is doing; heartbeat/rank-*.json are their own
    summary.json          what happened
    predictions/<split>/  of ``evaluate``
    report-<split>.json   what it found; ``.md`` for people
"""

from __future__ import annotations

import json
import logging
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hisac_rec.checkpoints.location import locate
from hisac_rec.checkpoints.manifest import CheckpointManifest, Position, first_difference
from hisac_rec.checkpoints.saving import Checkpoints, Keep
from hisac_rec.config import Strict, dump_toml
from hisac_rec.data.contract import PreparedData
from hisac_rec.data.tasks import are_plain
from hisac_rec.errors import UserError
from hisac_rec.files import replace_text
from hisac_rec.planning.plan_io import Plan
from hisac_rec.ranker.config import ModelConfig, load_model_config
from hisac_rec.train.job import Job
from hisac_rec.train.reading import FILE, Reading
from hisac_rec.train.summary import RunStory

log = logging.getLogger(__name__)

STACK = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "torchx", "pyarrow", "duckdb")


class RunInfo(Strict):
    """``run.json``."""

    data: str
    """Folder of the prepared data set."""
    data_name: str
    """Name of its definition."""
    data_fingerprint: str
    """Fingerprint of the prepared data."""
    world_size: int
    """Ranks that trained."""
    device: str
    """Kind of device."""
    versions: dict[str, str]
    """Installed versions."""
    command: list[str]
    """Command line that made the run."""
    checkpoints: str = ""
    """URL of its checkpoints; empty where they lie in the run folder."""


class RunFolder:
    """Paths and small files of one run.

    Args:
        root: the folder.
        checkpoints: where its checkpoints lie; None: where ``run.json`` says, or in the folder.
    """

    def __init__(self, root: Path, checkpoints: str | None = None) -> None:
        self.root = root
        self._checkpoints = checkpoints

    @property
    def plan(self) -> Path:
        """The sharding plan it was trained with."""
        return self.root / "plan.json"

    @property
    def warm_start(self) -> Path:
        """What it kept of the run that it was started from."""
        return self.root / "warm_start.md"

    def exists(self) -> bool:
        """Whether there is a run here."""
        return (self.root / "config.toml").is_file()

    def checkpoints(self, keep: Keep | None = None, per_host: int | None = None) -> Checkpoints:
        """Its checkpoints; for the arguments see there."""
        return Checkpoints(self._checkpoint_folder(), keep, per_host)

    def _checkpoint_folder(self) -> Path:
        elsewhere = self._elsewhere()
        return locate(elsewhere) if elsewhere else self.root / "checkpoints"

    def _elsewhere(self) -> str:
        if self._checkpoints is None and (self.root / "run.json").is_file():
            return self.info().checkpoints
        return self._checkpoints or ""

    def predictions(self, split: str) -> Path:
        """Folder of the predictions of one split."""
        return self.root / "predictions" / split

    def require(self, job: Job, *, resume: bool) -> None:
        """Check that there is room for a new run, or a run of ``job`` to go on with.

        Raises:
            UserError: the folder is taken, or holds nothing to resume, or a run of another model.
        """
        exists = self.exists()
        if exists and not resume:
            raise UserError(
                f"{self.root}: holds a run already; choose another --out, or go on with --resume"
            )
        steps = [] if exists else self.checkpoints().steps()
        if steps and not resume:
            raise UserError(
                f"{self._checkpoint_folder()}: holds checkpoints already; choose another place, "
                "or go on with --resume"
            )
        if resume and not exists and not steps:
            if self._checkpoints is None:
                raise UserError(f"{self.root}: no run to resume there")
            # One command for the first start and for every other, on machines that come and go.
            log.warning("%s: no checkpoint there yet, a new run starts", self._checkpoint_folder())
        if resume and exists:
            before, now = self.config(), job.config
            changed = first_difference(
                before.model_copy(update={"train": now.train, "loader": now.loader}).model_dump(),
                now.model_dump(),
            )
            if changed:
                raise UserError(
                    f"{self.root / 'config.toml'}: the run was made with another model "
                    f"configuration: {changed} in this one; resume with the same model file "
                    "(only [train] and [loader] may change)"
                )

    def story(self) -> RunStory:
        """What happened to it."""
        return RunStory(self.root, self.checkpoints())

    def create(self, job: Job, plan: Plan, *, world_size: int, device: str) -> None:
        """Write what is known before training starts (rank 0).

        Other ranks may look for a run here meanwhile: each file is there whole or not at all.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        info = RunInfo(
            data=str(job.data.root),
            data_name=job.data.manifest.name,
            data_fingerprint=job.data.manifest.fingerprint,
            world_size=world_size,
            device=device,
            versions=stack_versions(),
            command=sys.argv,
            checkpoints=self._elsewhere(),
        )
        replace_text(self.root / "run.json", info.model_dump_json(indent=1))
        replace_text(self.root / "config.toml", dump_toml(job.config))
        plan.save(self.plan)

    def config(self) -> ModelConfig:
        """The resolved model file.

        Raises:
            UserError: the folder is no run.
        """
        path = self.root / "config.toml"
        if not path.is_file():
            raise UserError(
                f"{self.root}: not a run (config.toml is missing); "
                "make one with 'hisac-rec train MODEL DATA --out RUN'"
            )
        return load_model_config(path)

    def info(self) -> RunInfo:
        """What ``run.json`` says.

        Raises:
            UserError: it is absent or not readable.
        """
        path = self.root / "run.json"
        try:
            return RunInfo.model_validate(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not readable: {error}") from None

    def data(self, given: Path | None) -> PreparedData:
        """The data set that was trained on, or ``given`` where it has moved."""
        return PreparedData(given or Path(self.info().data))


def stack_versions() -> dict[str, str]:
    """Installed versions of the packages that matter for reproducing a run."""
    found = {}
    for name in STACK:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def checkpoint_manifest(
    job: Job,
    world_size: int,
    position: Position,
    metrics: dict[str, float],
    best: dict[str, float],
    score: float | None = None,
) -> CheckpointManifest:
    """What a checkpoint of this job says about itself."""
    config = job.config.model_dump(mode="json")
    shape: dict[str, Any] = {
        "inputs": {k: v for k, v in config["inputs"].items() if k != "out_of_range"},
        "tables": {k: v for k, v in config["tables"].items() if k != "init_scale"},
        "history": config["history"],
        "ranker": {k: v for k, v in config["ranker"].items() if k != "dropout"},
        "sparse_optimizer": config["train"]["sparse_optimizer"],
    }
    tasks = job.spec.tasks
    if not are_plain(tasks, job.data.manifest) or config["tasks"]["over_layers"]:
        shape["tasks"] = {
            "train": [tasks[0].name, *sorted(task.name for task in tasks[1:])],
            "over_layers": config["tasks"]["over_layers"],
        }
    return CheckpointManifest(
        position=position,
        world_size=world_size,
        loader=config["loader"],
        architecture=shape,
        data_fingerprint=job.data.manifest.fingerprint,
        semantics_fingerprint=job.semantics.fingerprint if job.semantics else "",
        metrics=metrics,
        best=best,
        score=score,
        versions=stack_versions(),
    )


def checkpoint_files(job: Job, plan: Plan | None, reading: Reading) -> dict[str, bytes]:
    """What lies beside the tensors of a checkpoint, by name. Called on every rank."""
    files = {FILE: reading.content(), "config.toml": dump_toml(job.config).encode()}
    return files if plan is None else files | {"plan.json": plan.to_json().encode()}
