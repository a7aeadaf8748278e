"""Started by torchrun on two ranks: trains every shipped model for ``train/test_every_model.py``.

One launch for all of them, because starting two interpreters with torch costs more than
training a model. Arguments: prepared data, folder for results.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from pathlib import Path

from hisac_rec.data.contract import PreparedData
from hisac_rec.ranker.config import ModelConfig, load_model_config
from hisac_rec.shipped import find_config, shipped_names
from hisac_rec.train.distributed import process_group
from hisac_rec.train.job import open_job
from hisac_rec.train.training import train

SMALL = [
    "tables.dim=16",
    "ranker.over_layers=[16]",
    "train.epochs=1",
    "train.warmup_steps=1",
    "train.log_every=1",
]
FEW_STEPS = ["loader.batch_tokens=40000", "loader.max_candidates=3000"]
"""An epoch of the ``small_data`` fixture is about four steps."""


def every_model() -> list[str]:
    """The names of all model files that are shipped."""
    return shipped_names("models")


def shipped_model(name: str, overrides: list[str]) -> ModelConfig:
    """The shipped model in small: its method, keys and inputs are its own."""
    return load_model_config(find_config("models", name), [*SMALL, *overrides])


def main(data: PreparedData, out: Path) -> None:
    with process_group() as ranks:
        for name in every_model():
            print("training", name, file=sys.stderr, flush=True)  # the last one did not end
            try:
                train(open_job(shipped_model(name, FEW_STEPS), data), ranks, out / name)
            except Exception:  # on both ranks alike; else the launch fails as a whole
                (out / f"{name}.{ranks.rank}.error").write_text(traceback.format_exc())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(PreparedData(sys.argv[1]), Path(sys.argv[2]))
