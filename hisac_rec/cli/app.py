"""The ``hisac-rec`` command: every other file of this folder is one sub-command.

A command file defines ``run``, a typer function with a docstring (its help). Imports of
torch and friends belong inside ``run``, so that ``--help`` answers at once.

Exit codes: 0 done; 2 the input or usage is wrong (the message says what to mend); 1 a
defect of ours, with its traceback; 75 asked to end by a signal, a checkpoint was saved; 76
another rank failed or did not arrive; 130 and 143 ended at once by SIGINT and SIGTERM.
"""

from __future__ import annotations

import logging
import sys
import warnings
from importlib import import_module
from typing import Annotated

import typer

from hisac_rec import __version__
from hisac_rec.errors import EndedError, UserError

COMMANDS = (
    "doctor",
    "init-dataset",
    "prepare",
    "semantic-ids",
    "plan",
    "train",
    "evaluate",
    "compress",
    "score",
    "export",
    "store",
    "serve",
    "inspect",
    "tune",
    "compare",
    "demo",
)
"""In the order in which a newcomer meets them."""

LIBRARIES = ("torchrec", "torch", "fbgemm_gpu", "matplotlib")
"""Loggers whose every-day lines are shown with --verbose alone."""

log = logging.getLogger("hisac_rec")

app = typer.Typer(
    name="hisac-rec",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hisac-rec {__version__}")
        raise typer.Exit


def _not_from_the_root_logger(record: logging.LogRecord) -> bool:
    """Our own lines come from named loggers; fbgemm chats through the root logger."""
    return record.name != "root" or record.levelno >= logging.WARNING


@app.callback()
def _root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log at DEBUG level.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    """Rank with ultra-long user histories: prepare data, fit semantic IDs, train, evaluate.

    The whole way, on a laptop or a cluster:

        hisac-rec prepare synthetic --out data/syn
        hisac-rec semantic-ids data/syn
        hisac-rec train hisac data/syn --out runs/syn
        hisac-rec evaluate runs/syn
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    if not verbose:
        for handler in logging.getLogger().handlers:
            handler.addFilter(_not_from_the_root_logger)
        for name in LIBRARIES:
            logging.getLogger(name).setLevel(logging.WARNING)
        # Deprecations inside torch and torchrec that no user of this command can act on.
        logging.getLogger("torch.fx").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch(rec)?\.")
        warnings.filterwarnings("ignore", "Please use DTensor", FutureWarning)
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)


for _name in COMMANDS:
    app.command(_name)(import_module(f"hisac_rec.cli.{_name.replace('-', '_')}").run)


def main() -> None:
    """Run the command line; turn what a person can act on into a message and an exit code."""
    try:
        app()
    except UserError as error:
        log.error("%s", error)
        sys.exit(2)
    except EndedError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)
