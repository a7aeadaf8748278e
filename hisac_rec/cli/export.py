"""``hisac-rec export``: a trained run as a folder that needs no training code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")],
    data: Annotated[
        Path | None, typer.Option(help="The prepared data set, where it has moved.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the tables: fp32, fp16 or int8.")] = "fp32",
    checkpoint: Annotated[str, typer.Option(help="best, last, or a step.")] = "best",
    aot: Annotated[
        bool | None,
        typer.Option(help="Compile with AOTInductor; else where there is a C++ compiler."),
    ] = None,
) -> None:
    """Export the candidate side of a model, its tables and its items.

    **Examples**

        hisac-rec export runs/hisac --out model

        hisac-rec export runs/hisac --out model8 --precision int8 --no-aot
    """
    import shutil

    from torch.utils.cpp_extension import get_cxx_compiler

    from hisac_rec.cli.trained import open_run
    from hisac_rec.errors import UserError, did_you_mean
    from hisac_rec.serving.export import export_run
    from hisac_rec.serving.precision import PRECISIONS
    from hisac_rec.train.distributed import process_group

    if precision not in PRECISIONS:
        raise UserError(
            f"--precision {precision}: expected one of {', '.join(PRECISIONS)}"
            f"{did_you_mean(precision, PRECISIONS)}"
        )
    compiler = shutil.which(get_cxx_compiler())
    if aot and not compiler:
        raise UserError(
            f"--aot: this machine has no C++ compiler '{get_cxx_compiler()}'; install one, or "
            "export with --no-aot"
        )
    folder, prepared = open_run(run_folder, data)
    with process_group():
        export_run(
            folder,
            prepared,
            out,
            precision=precision,  # type: ignore[arg-type]
            checkpoint=checkpoint,
            compiled=bool(compiler) if aot is None else aot,
        )
