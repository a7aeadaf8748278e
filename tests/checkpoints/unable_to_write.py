"""Started by torchrun on two ranks: the second one is slow to write, and then cannot.

Arguments: prepared data, folder of the run.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemWriter
from training import small_config

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.train.distributed import process_group
from hisac_rec.train.job import open_job
from hisac_rec.train.trainer import Trainer
from hisac_rec.train.training import train

write = FileSystemWriter.write_data
reached: list[int] = []


def hindered(writer: Any, *arguments: Any) -> Any:
    if "00000005" in str(writer.path):
        deadline = time.monotonic() + 60
        while not reached and time.monotonic() < deadline:
            time.sleep(0.05)
    if "00000010" in str(writer.path):
        raise OSError(28, "No space left on device")
    return write(writer, *arguments)


def main(data: PreparedData, out: Path) -> None:
    count = Trainer._count

    def counted(self: Trainer, *arguments: Any) -> None:
        count(self, *arguments)
        if self.position.step == 8:  # both ranks went on while one was still writing
            assert self.checkpoints.steps() == []
            reached.append(8)

    Trainer._count = counted  # type: ignore[method-assign]
    with process_group() as ranks:
        if ranks.rank == 1:
            FileSystemWriter.write_data = hindered  # type: ignore[method-assign]
        try:
            train(open_job(small_config("train.checkpoint_every=5"), data), ranks, out)
        except UserError as error:
            (out / f"error-{ranks.rank}.txt").write_text(str(error))
        except RuntimeError as error:  # the other rank has left already
            (out / f"left-{ranks.rank}.txt").write_text(str(error))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(PreparedData(sys.argv[1]), Path(sys.argv[2]))
