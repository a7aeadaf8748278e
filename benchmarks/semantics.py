"""What semantic IDs are worth in a trained ranker: HiSAC on IDs made in several ways.

The prepared data set of a study of ``benchmarks/comparison.py`` is copied once for each way, its
IDs are fitted anew, and ``hisac-rec compare`` trains HiSAC on all copies::

    python -m benchmarks.semantics synthetic-1000 --seeds 3
    python -m benchmarks.semantics movielens-100k --raw ../shared/data/ml-100k --seeds 3

The cells are committed under ``docs/results/comparison/<study>-semantics``; the page of the
comparison shows them. The quality of the IDs alone: ``benchmarks/semantic_ids.py``.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison import OUT, STUDIES, command, prepare_study, sets


@dataclass(frozen=True)
class Way:
    """One way to make semantic IDs.

    Args:
        ids: ``--set`` of ``hisac-rec semantic-ids``.
        train: ``--set`` of HiSAC: as many agents, 128, for another depth.
    """

    ids: tuple[str, ...] = ()
    train: tuple[str, ...] = ()


WIDTHS = {
    "shipped": Way(),
    "another-seed": Way(("seed=1",)),
    "rqvae": Way(("method=rqvae",)),
    "one-level-256": Way(("codes=[256]",), ("history.keep=[128]",)),
    "codes-16x32": Way(("codes=[16,32]",)),
    "codes-16x64": Way(("codes=[16,64]",)),
    "codes-32x64": Way(("codes=[32,64]",)),
    "codes-64x64": Way(("codes=[64,64]",)),
    "codes-64x256": Way(("codes=[64,256]",)),
    "codes-32x32x32": Way(("codes=[32,32,32]",), ("history.keep=[16,4,2]",)),
}
SOURCES = {
    "text": Way(("source=text",)),
    "collaborative": Way(("source=collaborative",)),
    "collaborative-90": Way(("collaborative_weight=0.9",)),
}
WAYS = {
    "synthetic-1000": WIDTHS | {"collaborative": Way(("source=collaborative",))},
    "movielens-100k": WIDTHS | SOURCES,
    "movielens-1m": WIDTHS | SOURCES,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=WAYS)
    parser.add_argument("--raw", type=Path, help="folder of the publisher's files")
    parser.add_argument("--ways", nargs="+", help="these alone")
    parser.add_argument("--seeds", default="3")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--work", type=Path, default=Path("runs/comparison"))
    arguments = parser.parse_args()
    study, out = STUDIES[arguments.study], OUT / f"{arguments.study}-semantics"
    data = prepare_study(arguments.study, arguments.work, arguments.raw)
    by_train: dict[tuple[str, ...], list[Path]] = {}
    for name in arguments.ways or WAYS[arguments.study]:
        way = WAYS[arguments.study][name]
        copy = arguments.work / f"{arguments.study}-semantics" / name
        if not copy.is_dir():
            shutil.copytree(data, copy)
        # The same settings again change nothing.
        command("semantic-ids", copy, "--force", *sets(way.ids))
        by_train.setdefault(way.train, []).append(copy)
    sized = ("--seeds", arguments.seeds, "--jobs", arguments.jobs, "--out", out)
    for train, copies in by_train.items():
        folders = [word for copy in copies for word in ("--data", copy)]
        command("compare", "hisac", *folders, *sized, *sets((*study.train, *train)))


if __name__ == "__main__":
    main()
