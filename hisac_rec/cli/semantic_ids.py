"""``hisac-rec semantic-ids``: give every item of a prepared data set its path of codes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hisac_rec.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from hisac_rec.data.contract import PreparedData
    from hisac_rec.semantic.config import SemanticIdConfig
    from hisac_rec.semantic.predecessor import Predecessor
    from hisac_rec.semantic.quality import Refresh, Report

log = logging.getLogger(__name__)

EXAMPLE_CODES = 8
EXAMPLE_ITEMS = 4
SNIPPET = 28


def run(
    data: Annotated[Path, typer.Argument(help="Folder that `hisac-rec prepare` wrote.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of [semantic_ids]."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace IDs of other settings.")] = False,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DATA",
            help="Go on from the IDs of other data: its items keep their codes, new ones get "
            "theirs by the same codebook.",
        ),
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="With --from: fit again, aligned to those IDs.")
    ] = False,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="File of embeddings by raw id, instead of the items' own: .parquet, .npy."
        ),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Where the page goes; DATA/semantic_ids.html by default.")
    ] = None,
    raw: Annotated[
        Path | None, typer.Option(help="What {raw} stands for in the key 'embeddings'.")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto: GPU if any.")
    ] = "auto",
) -> None:
    """Fit semantic IDs: a path of codes per item, from content, text or who consumed it.

    Defaults come from the table `[semantic_ids]` of the data set's definition. Every item
    gets codes, also those that training never saw. Writes `semantic_ids.parquet`,
    `codebook.parquet`, `featuriser.npz` and `semantic_ids.json` into the folder, all or nothing,
    and `semantic_ids.html`, the report as a page with example items of every branch.

    Run again with the same settings, it changes nothing; IDs of other settings are replaced
    with `--force` alone, because trained models depend on them.

    For example:

        hisac-rec semantic-ids data/syn

        hisac-rec semantic-ids data/ml-1m --set source=text --set "codes=[64, 64]" --force

        hisac-rec semantic-ids data/shop --set method=rqvae --set rqvae.epochs=200

        hisac-rec semantic-ids data/shop --embeddings clip-int8.parquet

        hisac-rec semantic-ids data/today --from data/yesterday

        hisac-rec semantic-ids data/today --from data/last-week --refit
    """
    from rich.console import Console

    from hisac_rec.data.contract import PreparedData
    from hisac_rec.semantic.fit import (
        fit_semantic_ids,
        read_report,
        resolve_config,
        with_embeddings,
    )
    from hisac_rec.semantic.page import PAGE_FILE, write_page
    from hisac_rec.semantic.predecessor import open_predecessor
    from hisac_rec.semantic.refresh import extend_semantic_ids, refit_semantic_ids

    if refit and from_ is None:
        raise UserError("--refit needs --from: a fit that goes on from none is a plain one")
    prepared = PreparedData(data)
    old = None if from_ is None else open_predecessor(PreparedData(from_))
    if old is None or refit:
        config = resolve_config(prepared, overrides or [], embeddings=embeddings, raw=raw)
    else:
        config = with_embeddings(_kept(old, overrides or []), embeddings, raw)
    if not force and _is_there(prepared, config, old, refit):
        log.info("%s: semantic IDs of these settings are there already", data)
        report = read_report(prepared)
        assert report is not None
    else:
        if old is None:
            report = fit_semantic_ids(prepared, config, _device(device))
        elif refit:
            report = refit_semantic_ids(prepared, config, old, _device(device))
        else:
            report = extend_semantic_ids(prepared, old, _device(device), config)
        log.info("written to %s", data)
    page = page or data / PAGE_FILE
    write_page(prepared, report, page)
    console = Console()
    console.print(_levels(report))
    console.print(_summary(report), highlight=False, soft_wrap=True)
    console.print(_examples(prepared))
    console.print(f"for people: {page}", highlight=False, soft_wrap=True)


def _kept(old: Predecessor, overrides: list[str]) -> SemanticIdConfig:
    """The settings of a codebook that is kept; where its text model lies may have changed."""
    from hisac_rec.config import apply_overrides, validate
    from hisac_rec.semantic.config import SemanticIdConfig

    for text in overrides:
        if text.partition("=")[0].strip() not in ("text.model", "text.batch_size"):
            raise UserError(
                f"--set {text}: the settings of {old.data.root} hold where its codebook is kept; "
                "leave it away, or fit again with --refit"
            )
    raw = apply_overrides(old.report.config.model_dump(), overrides)
    return validate(SemanticIdConfig, raw, "--set")


def _is_there(
    data: PreparedData, config: SemanticIdConfig, old: Predecessor | None, refit: bool
) -> bool:
    """True: the same fit is there. False: none, or one that this data cannot use.

    Raises:
        UserError: a usable fit of other settings is there.
    """
    from hisac_rec.semantic.embeddings import file_digest
    from hisac_rec.semantic.fit import read_report
    from hisac_rec.semantic.store import load_semantics

    if not data.has_semantic_ids:
        return False
    report = read_report(data)
    try:
        load_semantics(data)
    except UserError as error:
        log.warning("%s", error)
        return False
    if report is None or report.data_fingerprint != data.manifest.fingerprint:
        return False
    before, after = report.config.model_dump(), config.model_dump()
    before["from"], after["from"] = None, None
    if report.refresh is not None:
        before["from"] = f"{report.refresh.predecessor_fit}, {report.refresh.kind}"
    if old is not None:
        after["from"] = f"{old.semantics.fingerprint}, {'refitted' if refit else 'extended'}"
    changed = [
        f"{key}: {before[key]!r} -> {after[key]!r}" for key in after if before[key] != after[key]
    ]
    if not changed and config.embeddings is not None:
        now = file_digest(Path(config.embeddings))
        if report.digests.get("embeddings") != now:
            changed = [f"{config.embeddings}: other contents"]
    if not changed:
        return True
    raise UserError(
        f"{data.root}: has semantic IDs of other settings ({'; '.join(changed)}); "
        "models trained on them need them, so replace them with --force if that is meant"
    )


def _device(name: str) -> str:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU; see 'hisac-rec doctor'")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _levels(report: Report) -> Table:
    from rich.table import Table

    config = report.config
    table = Table(title=f"Semantic IDs: {config.method} on {config.source}, codes {config.codes}")
    for name in ("level", "codes", "used", "perplexity", "nodes", "error (MSE)", "explained"):
        table.add_column(name, justify="right")
    for level in report.quality.levels:
        table.add_row(
            str(level.level),
            str(level.codes),
            f"{level.usage:.1%}",
            f"{level.perplexity:.1f}",
            f"{level.nodes:,}",
            f"{level.mse:.4f}",
            f"{level.variance_explained:.1%}",
        )
    return table


def _summary(report: Report) -> str:
    quality = report.quality
    lines = [
        f"items {report.items - 1:,}: fitted on {report.items_fitted:,}; unseen in training "
        f"{report.items_unseen:,}, of which {report.items_unseen_with_vector:,} have a vector; "
        f"without any vector {report.items_without_vector:,} (they get the mean's codes)",
        f"source variance explained {quality.source_variance_explained:.1%}; items that share "
        f"their whole path {quality.collision_rate:.1%}",
        f"distance of an item to its own path {quality.distance_own:.3f}, to other paths "
        f"{quality.distance_other:.3f}: try a routing temperature tau near {quality.tau_hint:.3f}",
    ]
    if report.support is not None:
        few, middle, many = (report.support[share] for share in ("0.1", "0.5", "0.9"))
        lines.append(
            f"users behind an item {few:,.0f} to {many:,.0f}, {middle:,.0f} in the middle; too few "
            f"of them for a place: {report.support['below']:.1%} of the items; "
            f"{report.config.views} views, each made without the users who read it"
        )
    if report.probe is not None and None not in (report.probe.train, report.probe.valid):
        lines.append(
            f"the codes alone tell training labels with an AUC of {report.probe.train:.3f}, "
            f"validation labels with {report.probe.valid:.3f}: a gap is a leak"
        )
    lines += report.inputs
    if report.refresh is not None:
        lines.append(_refreshed(report.refresh))
    return "\n".join([*lines, *(f"warning: {text}" for text in quality.warnings)])


def _refreshed(refresh: Refresh) -> str:
    levels = ", ".join(f"{share:.2%}" for share in refresh.changed)
    drift = ", ".join(f"{share:.1%}" for share in refresh.drift)
    return (
        f"{refresh.kind} from {refresh.predecessor}: of {refresh.unchanged:,} unchanged items "
        f"{refresh.changed_path:.2%} have another path (by level {levels}); {refresh.new:,} new, "
        f"{refresh.placed:,} placed for the first time, {refresh.gone:,} gone; code words moved by "
        f"{drift} of their length"
    )


def _examples(data: PreparedData) -> Table:
    """The largest top-level codes with their most consumed items."""
    import numpy as np
    from rich.table import Table

    from hisac_rec.semantic.store import load_semantics

    semantics = load_semantics(data)
    top = semantics.codes[semantics.in_view(0), 0][1:]
    column = "text" if data.manifest.has_text else "raw_id"
    names = data.items.column(column)
    popular = np.argsort(-data.items.column("train_count").to_numpy()[1:], kind="stable")
    sizes = np.bincount(top, minlength=semantics.code_counts[0])
    shown = np.argsort(-sizes, kind="stable")[:EXAMPLE_CODES]
    shown = shown[sizes[shown] > 0]
    table = Table(title=f"The {len(shown)} largest of {int((sizes > 0).sum())} top-level codes")
    table.add_column("code", justify="right")
    table.add_column("items", justify="right")
    table.add_column(f"most consumed ({column})")
    for code in shown:
        rows = popular[top[popular] == code][:EXAMPLE_ITEMS] + 1
        snippets = [str(names[int(row)].as_py() or "?")[:SNIPPET].strip() for row in rows]
        table.add_row(str(code), f"{sizes[code]:,}", " | ".join(snippets))
    return table
