"""``hisac-rec demo``: the whole way on synthetic data in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything.")] = Path("demo"),
    force: Annotated[bool, typer.Option(help="Remove an earlier demo in --out first.")] = False,
    data_set: Annotated[
        list[str] | None, typer.Option("--data-set", help="key.path=value over the data set.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key.path=value over the model files.")
    ] = None,
) -> None:
    """Generate data, fit semantic IDs, train HiSAC and a no-history ranker, evaluate both.

    Ends with a table beside the oracle (the true click probability) and the path of
    everything that was written.

    **Examples**

        hisac-rec demo

        hisac-rec demo --out demo-long --data-set synthetic.users=2000 --set train.epochs=2
    """
    import shutil

    from rich.console import Console

    from hisac_rec.demo import run_demo
    from hisac_rec.doctor import check_stack
    from hisac_rec.errors import UserError
    from hisac_rec.evaluation.table import print_report

    check_stack()
    if force and out.exists():
        # Only what a demo wrote is ever removed.
        if not (out / "data" / "manifest.json").is_file():
            raise UserError(f"{out}: is not the folder of a demo; remove it yourself")
        shutil.rmtree(out)
    result = run_demo(out, data_set or [], set_ or [])
    print_report(result.report, slices=False)
    console = Console()
    console.print(
        f"HiSAC goes {result.closed:.0%} of the way from the no-history ranker to the oracle, "
        f"in {result.seconds:.0f} s."
    )
    console.print(f"Written to {result.folder}: data, runs, and the full report in")
    console.print(f"  {result.folder}/runs/hisac/report-test.md", soft_wrap=True)
