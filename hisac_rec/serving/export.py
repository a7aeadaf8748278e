"""Export a trained run: the candidate side as a program, the tables as files to be mapped.

What is written is read by :mod:`hisac_rec.scorer`, which needs nothing of the training stack.

Legend: I items, K agents, N candidates, d width, D levels.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from hisac_rec.checkpoints.location import reader
from hisac_rec.checkpoints.managed_state import stored_mapping
from hisac_rec.checkpoints.manifest import read_manifest
from hisac_rec.checkpoints.restore import require_whole
from hisac_rec.checkpoints.stored_tensors import StoredTensors
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.methods.hisac.leaves import path_numbers
from hisac_rec.progress import progress
from hisac_rec.scorer.artefact import (
    COMPILED,
    FORMAT,
    FORMAT_OF_VOTES,
    INPUTS,
    MANIFEST,
    PROGRAM,
    REJECTED,
    SELFTEST,
    Artefact,
    ExportedLookup,
    ExportManifest,
    digest_of,
)
from hisac_rec.scorer.lookups import VIEWS
from hisac_rec.serving.candidate_side import CandidateSide
from hisac_rec.serving.compress import describe
from hisac_rec.serving.precision import STORED, Precision, encode
from hisac_rec.train.job import Job, open_job
from hisac_rec.train.run import RunFolder, stack_versions

log = logging.getLogger(__name__)

DENSE = "model.head.dense."
ROWS = 1 << 18
"""Rows of a table that are converted at a time."""
MOST_AGENTS, MOST_CANDIDATES = 1 << 16, 1 << 20
SELFTEST_SIZES = ((1, 1), (7, 50), (60, 3))
"""(agents, candidates) of the recorded cases."""


def export_run(
    run: RunFolder,
    data: PreparedData,
    out: Path,
    *,
    precision: Precision = "fp32",
    checkpoint: str = "best",
    compiled: bool = True,
) -> Path:
    """Write an exported model. Called by one process with a group of its own.

    Args:
        run: a trained run of a model whose histories can be cached.
        data: the data it was trained on.
        out: a new folder; it appears when it is complete.
        precision: of the embedding tables.
        checkpoint: "best", "last" or a step.
        compiled: compile the program with AOTInductor as well; needs a C++ compiler here.

    Returns:
        ``out``.

    Raises:
        UserError: ``out`` is there already, the checkpoint is damaged, or the model reads what
            cannot be exported.
    """
    if out.exists():
        raise UserError(f"{out}: there already; choose another --out or delete it")
    job = open_job(run.config(), data)
    path = run.checkpoints().find(checkpoint)
    require_whole(path, read_manifest(path))
    cache = describe(job, path, at="last", age=0, precision="fp32")
    dense = job.unsharded().head.dense
    side = CandidateSide(dense).eval()
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "tables").mkdir(parents=True)
    (temporary / "items").mkdir()
    try:
        _load_dense(path, dense)
        _write_tables(path, job, dense, temporary / "tables", precision)
        _write_rows_of_ids(path, job, temporary / "tables")
        _write_items(job, temporary / "items")
        if job.items.view_of_user is not None:
            (temporary / VIEWS).parent.mkdir()
            np.save(temporary / f"{VIEWS}.npy", job.items.view_of_user.astype(np.uint8))
        names = INPUTS + REJECTED if cache.rejected else INPUTS
        _write_program(side, job, names, temporary, compiled)
        _write_selftest(side, job, names, temporary / SELFTEST)
        found = read_manifest(path)
        manifest = ExportManifest(
            format=FORMAT_OF_VOTES if cache.rejected else FORMAT,
            name=job.config.name,
            run=cache.run,
            data_fingerprint=cache.data_fingerprint,
            metrics=found.metrics,
            versions=stack_versions(),
            dim=job.config.tables.dim,
            code_counts=list(job.spec.code_counts),
            views=job.semantics.views if job.semantics else 1,
            recent=dense.recent,
            max_history=job.spec.max_history,
            has_clock=data.manifest.has_clock,
            age_buckets=job.config.ranker.age_buckets,
            event_types=data.manifest.event_types,
            tasks=[task.name for task in job.spec.tasks] if len(job.spec.tasks) > 1 else [],
            lookups=[
                ExportedLookup(
                    key=lk.key, table=lk.table, side=lk.side, column=lk.column, multi=lk.multi
                )
                for lk in job.spec.lookups
            ],
            precision=precision,
            votes_against=bool(cache.rejected),
            files={
                str(file.relative_to(temporary)): digest_of(file)
                for file in sorted(temporary.rglob("*"))
                if file.is_file()
            },
        )
        (temporary / MANIFEST).write_text(manifest.model_dump_json(indent=1))
        off = Artefact(temporary).self_test()
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    temporary.rename(out)
    log.info("exported to %s; self-test passed, off by %.1g at most", out, off)
    return out


def _load_dense(checkpoint: Path, dense: torch.nn.Module) -> None:
    state = {f"{DENSE}{name}": value for name, value in dense.state_dict().items()}
    dcp.load(state, storage_reader=reader(checkpoint), no_dist=True)


def _write_tables(
    checkpoint: Path, job: Job, dense: torch.nn.Module, folder: Path, precision: Precision
) -> None:
    """Every table as a file, whatever the sharding it was written in. Streams: a table is mapped,
    not held.
    """
    metadata = reader(checkpoint).read_metadata().state_dict_metadata
    keys = {
        name: next(key for key in metadata if key.startswith("model.") and key.endswith(ending))
        for name in job.spec.tables()
        for ending in (f".{name}.weight",)
    }
    with progress("export tables", len(keys), "tables") as advance:
        for name, key in keys.items():
            _write_table(checkpoint, key, metadata[key], folder / name, precision)
            advance(1)
    events: Any = getattr(dense, "events", None)
    for name in ("types", "ages"):
        own = getattr(events, name, None)
        if own is not None:
            np.save(folder / f"_{name}.npy", own.weight.detach().numpy())


def _write_rows_of_ids(checkpoint: Path, job: Job, folder: Path) -> None:
    """Which rows an id reads, for the tables where it is not its own."""
    source = StoredTensors(checkpoint)
    for name, rows in job.items.rows.items():
        mapping = stored_mapping(source, name)
        np.save(folder / f"{name}.rows.npy", rows if mapping is None else mapping.rows_of(rows))


def _write_table(checkpoint: Path, key: str, stored: Any, path: Path, precision: Precision) -> None:
    rows, dim = stored.size
    kept = {torch.float32: np.float32, torch.float16: np.float16}[stored.properties.dtype]
    raw = path.with_name(f"{path.name}.raw.npy")
    whole = open_memmap(raw, mode="w+", dtype=kept, shape=(rows, dim))
    stored_rows = {key: torch.from_numpy(whole)}
    dcp.load(stored_rows, storage_reader=reader(checkpoint), no_dist=True)
    final = open_memmap(path.with_suffix(".npy"), "w+", STORED[precision], shape=(rows, dim))
    scales = np.ones(rows, np.float32)
    for begin in range(0, rows, ROWS):
        part = slice(begin, min(rows, begin + ROWS))
        final[part], scales[part] = encode(whole[part].astype(np.float32), precision)
    final.flush()
    del whole
    raw.unlink()
    if precision == "int8":
        np.save(path.with_name(f"{path.name}.scale.npy"), scales)


def _write_items(job: Job, folder: Path) -> None:
    items = job.items
    np.save(folder / "codes.npy", items.codes)
    np.save(folder / "placed.npy", items.placed)
    for name, values in items.single.items():
        np.save(folder / f"{name}.values.npy", values)
    for name, ragged in items.multi.items():
        np.save(folder / f"{name}.offsets.npy", ragged.offsets)
        np.save(folder / f"{name}.values.npy", ragged.values)
    raw = job.data.items["raw_id"].to_pylist()
    names = np.array([(name or "").encode() for name in raw[1:]], dtype=np.bytes_)
    order = np.argsort(names, kind="stable")
    np.save(folder / "names.npy", names[order])
    np.save(folder / "of_names.npy", order + 1)


def _write_program(
    side: CandidateSide, job: Job, names: tuple[str, ...], folder: Path, compiled: bool
) -> None:
    agents = torch.export.Dim("agents", min=1, max=MOST_AGENTS)
    candidates = torch.export.Dim("candidates", min=1, max=MOST_CANDIDATES)
    rejected = torch.export.Dim("rejected", min=1, max=MOST_AGENTS)
    shapes: dict[str, dict[int, Any] | None] = dict.fromkeys(names)
    shapes |= {name: {0: agents} for name in ("vectors", "events", "path")}
    shapes |= {"candidates": {1: candidates}, "codes": {0: candidates}, "placed": {0: candidates}}
    if REJECTED[0] in names:
        shapes |= {name: {0: rejected} for name in REJECTED}
    inputs = _example(job, 5, 9, seed=0)
    with torch.no_grad():
        program = torch.export.export(
            side,
            tuple(inputs[name] for name in names),
            dynamic_shapes=tuple(shapes[name] for name in names),
        )
    torch.export.save(program, folder / PROGRAM)
    if compiled:
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / COMPILED))


def _write_selftest(side: CandidateSide, job: Job, names: tuple[str, ...], path: Path) -> None:
    recorded: dict[str, NDArray[Any]] = {"cases": np.array(len(SELFTEST_SIZES))}
    for case, (agents, candidates) in enumerate(SELFTEST_SIZES):
        inputs = _example(job, agents, candidates, seed=case + 1)
        with torch.no_grad():
            logits = side(*(inputs[name] for name in names))
        recorded |= {f"{case}.{name}": inputs[name].numpy() for name in names}
        recorded[f"{case}.logits"] = logits.numpy()
    np.savez(path, **recorded)  # type: ignore[arg-type]


def _example(job: Job, agents: int, candidates: int, seed: int) -> dict[str, torch.Tensor]:
    """Inputs of the candidate side, at random."""
    generator = torch.Generator().manual_seed(seed)
    dim, counts = job.config.tables.dim, job.spec.code_counts

    def rows(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(*shape, dim, generator=generator)

    def codes(number: int) -> torch.Tensor:
        columns = [torch.randint(0, n, (number,), generator=generator) for n in counts]
        return torch.stack(columns, 1) if columns else torch.zeros(number, 0, dtype=torch.int64)

    path = path_numbers(codes(agents), counts)
    return {
        "vectors": rows(agents),
        "events": torch.randint(1, 40, (agents,), generator=generator).float(),
        "path": path,
        "length": torch.tensor([123]),
        "users": rows(len(job.spec.of_side("user"))),
        "recent": rows(1),
        "candidates": rows(len(job.spec.of_side("candidate")), candidates),
        "codes": codes(candidates),
        "placed": torch.rand(candidates, generator=generator) < 0.9,
        # As many rejected leaves as there are agents and one more: another number than of agents.
        "against": torch.randint(1, 40, (agents + 1,), generator=generator).float(),
        "against_path": path_numbers(codes(agents + 1), counts),
    }
