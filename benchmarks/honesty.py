"""Whether codes know labels and training memorises: docs/results/honesty.md.

Each group is a comparison at the default settings of the shipped models, whose done cells are
skipped (``hisac-rec compare``); their cells are committed under ``docs/results/honesty``::

    python -m benchmarks.honesty sets --shared ../shared/data     # five real sets, six models
    python -m benchmarks.honesty coins --shared ../shared/data    # labels by a fair coin
    python -m benchmarks.honesty sparse --shared ../shared/data   # most test items are new
    python -m benchmarks.honesty events --shared ../shared/data   # dislikes in the history, or not
    python -m benchmarks.honesty page                             # the page, of what is there
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison import command, sets
from benchmarks.honesty_page import write_page

OUT = Path("docs/results/honesty")
COIN = "md5(concat(\"user\", ':', item)) < '8'"
"""One bit of a hash of user and item, in the SQL of a definition."""
SHIPPED = tuple(sorted(path.stem for path in Path("models").glob("*.toml")))
SYNTHETIC = {
    "users": "1500",
    "items": "20000",
    "branches": "[16, 8]",
    "turnover": "0.8",
    "length_min": "20",
    "length_median": "40",
    "length_max": "120",
}


@dataclass(frozen=True)
class Made:
    """A data set as it is prepared.

    Args:
        definition: name or file.
        raw: folder below ``--shared``; empty: it is generated.
        prepare: ``--set`` of ``hisac-rec prepare``.
        codes: ``--set`` of ``hisac-rec semantic-ids``.
    """

    definition: str
    raw: str = ""
    prepare: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()


BY_RANK = ("requests.group_events=8",)


def _coin(source: str) -> Made:
    keys = (f"requests.label={COIN}", f"history.where={COIN}", "history.votes={}", *BY_RANK)
    return Made("movielens_latest", "ml-latest-small", keys, (f"source={source}",))


LIKED = ('history.where="rating >= 4"', "history.votes={}", *BY_RANK)
GROUPS: dict[str, dict[str, Made]] = {
    "sets": {
        "movielens-1m": Made("movielens_1m", "ml-1m", BY_RANK),
        "movielens-100k": Made("movielens_100k", "ml-100k", BY_RANK),
        "kuairand": Made("kuairand_pure", "kuairand-pure-slice"),
        "online-retail": Made("online_retail", "online-retail"),
        "statics2011": Made("statics2011", "statics2011", BY_RANK),
    },
    "coins": {
        "coin-text": _coin("text"),
        "coin-collaborative": _coin("collaborative"),
        "coin-both": _coin("text+collaborative"),
    },
    "sparse": {
        "sparse-retail": Made("benchmarks/sparse/retail.toml", "online-retail"),
        "sparse-synthetic": Made(
            "synthetic",
            prepare=(
                *(f"synthetic.{key}={value}" for key, value in SYNTHETIC.items()),
                "semantic_ids.source=collaborative",
            ),
        ),
    },
    "events": {
        "latest-liked": Made("movielens_latest", "ml-latest-small", LIKED),
        "latest-all": Made("movielens_latest", "ml-latest-small", BY_RANK),
        "latest-all-alike": Made(
            "movielens_latest", "ml-latest-small", ("history.votes={}", *BY_RANK)
        ),
    },
}
MODELS = {
    "sets": ("hisac", "no_history", "kmeans", "learned", "muse", "longer"),
    "coins": ("hisac",),
    "sparse": SHIPPED,
    "events": ("hisac",),
}
SEEDS = {"sets": "3", "coins": "1", "sparse": "3", "events": "3"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("group", choices=[*GROUPS, "page"])
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/honesty"))
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--only", nargs="+", help="data sets of the group")
    parser.add_argument("--seeds")
    parser.add_argument("--jobs", default="2")
    arguments = parser.parse_args()
    if arguments.group == "page":
        write_page(OUT)
        return
    group = arguments.group
    for name, models in _plan(group, arguments.models):
        if arguments.only and name not in arguments.only:
            continue
        data = _prepared(name, GROUPS[group][name], arguments.work, arguments.shared)
        seeds = ("--seeds", arguments.seeds or SEEDS[group], "--jobs", arguments.jobs)
        command("compare", *models, "--data", data, "--out", OUT / group, *seeds, "--draws", "100")


def _plan(group: str, models: list[str] | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The data sets of a group, and the models that are trained on each."""
    for name in GROUPS[group]:
        chosen = tuple(models or MODELS[group])
        # A coin for every source, and on one of them for every shipped model.
        if name == "coin-both" and models is None:
            chosen = SHIPPED
        yield name, chosen


def _prepared(name: str, made: Made, work: Path, shared: Path) -> Path:
    """The data set with its semantic ids, made where it is not there."""
    data = work / name
    if not data.is_dir():
        raw = ("--raw", shared / made.raw) if made.raw else ()
        command("prepare", made.definition, *raw, "--out", data, *sets(made.prepare))
    if not (data / "semantic_ids.parquet").is_file():
        command("semantic-ids", data, *sets(made.codes))
    return data


if __name__ == "__main__":
    main()
