"""``hisac-rec doctor``: what is installed, does it work, how to mend it."""

from __future__ import annotations

import typer


def run() -> None:
    """Check versions, devices and collectives; name the command that mends what is wrong.

    Exit code 0 when everything works, 2 when something is wrong.

        hisac-rec doctor
    """
    import os
    import platform
    import shutil
    from pathlib import Path

    import psutil
    from rich.console import Console
    from rich.table import Table

    from hisac_rec import __version__, doctor

    stack, gpus = doctor.installed_stack(), doctor.gpu_files()
    shm = Path("/dev/shm")
    disk = shutil.disk_usage(Path.cwd())
    memory = psutil.virtual_memory()
    findings = doctor.judge_machine(
        shared_memory=shutil.disk_usage(shm).total if shm.is_dir() else None, free_disk=disk.free
    )
    findings += doctor.judge_stack(stack, len(gpus))

    console = Console()
    table = Table(title=f"hisac-rec {__version__}", title_justify="left", show_header=False)
    table.add_row("python", f"{platform.python_version()}, {platform.platform()}")
    table.add_row("torch", f"{stack.torch}, {stack.torch_build} build" if stack.torch else "None")
    table.add_row(
        "fbgemm", f"{stack.fbgemm}, {stack.fbgemm_build} build" if stack.fbgemm else "None"
    )
    for package in ("torchrec", "torchx", "tensordict", "pyarrow", "duckdb", "numpy"):
        table.add_row(package, str(doctor.installed_version(package)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    table.add_row("processors", f"{cores} usable, {psutil.cpu_count(logical=False)} physical")
    table.add_row(
        "memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    )
    table.add_row("disk", f"{disk.free / 2**30:.1f} of {disk.total / 2**30:.1f} GiB free here")
    table.add_section()
    with console.status("trying torch, fbgemm, torchrec and the collectives"):
        stages = doctor.probe()
    for stage in stages:
        shown = stage.detail if stage.ok else stage.detail.strip().splitlines()[-1]
        table.add_row(f"try {stage.name}", f"{'works' if stage.ok else 'FAILS'}: {shown}")
    findings += doctor.explain_failures(stages, len(gpus))
    console.print(table)

    for finding in findings:
        lines = (
            f"\n{'Wrong' if finding.wrong else 'Note'}: {finding.what}",
            f"  means:   {finding.meaning}",
            f"  mend it: {finding.mend}",
        )
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if any(finding.wrong for finding in findings):
        raise typer.Exit(2)
    console.print("\nEverything that hisac-rec needs works here.")
