"""Compare all methods on a data set at equal budget; the cells and the report are committed.

Prepares the data set of a study, then runs ``hisac-rec compare`` into
``docs/results/comparison/<study>``, where done cells are skipped: the study grows over
sessions and machines::

    python benchmarks/comparison.py statics2011 --raw ../shared/data/statics2011 --seeds 1
    python benchmarks/comparison.py synthetic-1000 --models hisac mean_pooling --seeds 3
    python benchmarks/comparison.py synthetic-1000 --variants ablations --seeds 3
    python benchmarks/comparison.py synthetic-10000 --variants traffic --ranks 2 --jobs 1
    python benchmarks/comparison.py movielens-100k --tune 6
    python benchmarks/comparison.py movielens-100k --variants tuned --seeds 3
    python benchmarks/comparison.py synthetic-1000 --report-only
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ALL_MODELS = (
    # costly ones first, so that several jobs end together; tables have an order of their own
    "hstu",
    "longer",
    "learned",
    "twin_v2",
    "din",
    "twin",
    "muse",
    "sim_soft",
    "eta",
    "hisac",
    "sim_hard",
    "kmeans",
    "din_recent50",
    "sdim",
    "lsh",
    "recent50",
    "time_patches",
    "mean_pooling",
    "no_history",
)
OUT = Path("docs/results/comparison")
BENCHMARKS = Path("benchmarks")
VARIANTS = {
    "ablations": ("hisac",),
    "reach": ("hisac",),
    "lengths": ("hisac", "kmeans"),
    "traffic": ("hisac",),
    "groups200": (),
    "tuned": (),
}
"""Folders of model files that are compared instead of the shipped ones, and which shipped ones stay
beside them; "tuned" has one folder a study, left there by ``--tune``."""


@dataclass(frozen=True)
class Study:
    """A data set as the comparison prepares it, and what all models share on it.

    Args:
        dataset: name of the shipped definition.
        prepare: ``--set`` of ``hisac-rec prepare``.
        train: ``--set`` of every model.
        own: ``--set`` of single models besides: those that read short histories get as many
            steps as the others, whose batches are full with fewer requests.
    """

    dataset: str
    prepare: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    own: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _synthetic(*keys: str) -> tuple[str, ...]:
    return tuple(f"synthetic.{key}" for key in keys)


def _passes(epochs: int) -> tuple[str, ...]:
    """Small batches: these sets give a training of some hundred steps, not of tens."""
    return (f"train.epochs={epochs}", "loader.max_candidates=512")


ONE_PASS, TWO_PASSES, THREE_PASSES = map(_passes, (1, 2, 3))

STUDIES = {
    # 748,782 training candidates; histories are at most 7 events older than exact.
    "movielens-1m": Study("movielens_1m", ("requests.group_events=8",), ONE_PASS),
    "movielens-100k": Study("movielens_100k", ("requests.group_events=8",), THREE_PASSES),
    "kuairand": Study("kuairand_pure", (), (*ONE_PASS, "train.max_candidates=100000")),
    # A basket is a request of some hundred candidates, four of five of them drawn.
    "online-retail": Study("online_retail", (), (*ONE_PASS, "train.max_candidates=300000")),
    "statics2011": Study("statics2011", ("requests.group_events=8",), ONE_PASS),
    # The longer the histories, the fewer the users and the more candidates share a history,
    # so that a full-length method ends on two cores.
    "synthetic-100": Study(
        "synthetic",
        _synthetic("candidates=16", "length_min=50", "length_median=100", "length_max=200"),
        ONE_PASS,
    ),
    "synthetic-1000": Study(
        "synthetic",
        (
            *_synthetic("users=1000", "candidates=32"),
            *_synthetic("length_min=500", "length_median=1000", "length_max=2000"),
        ),
        TWO_PASSES,
    ),
    # Fewer items and leaves as well, so that an item is met often enough to be learned.
    "synthetic-10000": Study(
        "synthetic",
        (
            *_synthetic("users=250", "items=1000", "branches=[16, 8]", "candidates=64"),
            *_synthetic("train_requests=4", "test_requests=1"),
            *_synthetic("length_min=5000", "length_median=10000", "length_max=10000"),
            "semantic_ids.codes=[16, 64]",
        ),
        # The tokens of 10,000 events cut smaller batches already: 576 labels in the mean.
        ("train.epochs=2",),
        dict.fromkeys(("recent50", "din_recent50"), ("loader.max_candidates=576",)),
    ),
    # Where every method's assumption holds: an interest is a category, met often, and a click
    # depends on nothing else but an item's quality. No rival may be a straw man here. Without
    # the user's id, which would learn the three categories of each user by heart.
    "strength": Study(
        "synthetic",
        (
            *_synthetic("items=640", "branches=[32, 1]", "category_noise=0", "fresh_items=0"),
            *_synthetic("tail_interests=0", "tail_weight=0", "tail_candidates=0"),
            *_synthetic("head_candidates=0.5", "sibling_affinity=0", "noise_weight=0"),
            *_synthetic("user_bias_scale=0", "candidates=16"),
            *_synthetic("length_min=30", "length_median=60", "length_max=100"),
            "semantic_ids.codes=[32, 32]",
        ),
        (*THREE_PASSES, "inputs.user=[]"),
    ),
}


def command(*words: str | Path) -> None:
    """Run one command of ``hisac-rec``, shown as a person would type it."""
    typed = [str(word) for word in words]
    sys.stderr.write(f"$ {shlex.join(['hisac-rec', *typed])}\n")
    subprocess.run([sys.executable, "-m", "hisac_rec", *typed], check=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--raw", type=Path, help="folder of the publisher's files")
    parser.add_argument("--models", nargs="+", default=list(ALL_MODELS))
    parser.add_argument("--seeds", default="3")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--ranks", default="1", help="processes of each cell")
    parser.add_argument("--baseline", default="mean_pooling")
    parser.add_argument("--work", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--variants", choices=VARIANTS, help="their files instead of the methods")
    parser.add_argument(
        "--tune", metavar="TRIALS", help="search that many trials of each method, and stop there"
    )
    arguments = parser.parse_args()
    study = STUDIES[arguments.study]
    out = OUT / arguments.study
    models = list(arguments.models)
    if arguments.variants:
        out = OUT / f"{arguments.study}-{arguments.variants}"
        folder = BENCHMARKS / arguments.variants
        folder = folder / arguments.study if arguments.variants == "tuned" else folder
        models = [*VARIANTS[arguments.variants], *sorted(map(str, folder.glob("*.toml")))]
        arguments.baseline = "hisac"
    baseline = ("--baseline", arguments.baseline)
    if arguments.report_only:
        command("compare", "--report-only", "--out", out, *baseline)
        return
    data = prepare_study(arguments.study, arguments.work, arguments.raw)
    if arguments.tune:
        tune(arguments.study, arguments.models, data, arguments.work, arguments.tune)
        return
    sized = ("--seeds", arguments.seeds, "--jobs", arguments.jobs, "--ranks", arguments.ranks)
    shared = (*sized, *sets(study.train))
    if alike := [model for model in models if model not in study.own]:
        command("compare", *alike, "--data", data, "--out", out, *shared, *baseline)
    apart = [model for model in models if model in study.own]
    for model in apart:
        own = ("--baseline", model, *sets(study.own[model]))
        command("compare", model, "--data", data, "--out", out, *shared, *own)
    if apart:  # all together again
        command("compare", "--report-only", "--out", out, *baseline)


def prepare_study(
    name: str, work: Path, raw: Path | None, variant: str = "", keys: tuple[str, ...] = ()
) -> Path:
    """The prepared data set of a study with its semantic ids; made where it is not there yet.

    Args:
        name: of the study.
        work: folder of all data sets.
        raw: folder of the publisher's files.
        variant: ending of the folder's name, where ``keys`` make another data set.
        keys: ``--set`` of ``hisac-rec prepare`` beside the study's own.
    """
    study, data = STUDIES[name], work / f"{name}{variant}"
    if not data.is_dir():
        of = ("--raw", raw) if raw else ()
        command("prepare", study.dataset, *of, "--out", data, *sets((*study.prepare, *keys)))
    if not (data / "semantic_ids.parquet").is_file():
        command("semantic-ids", data)
    return data


def tune(study: str, models: list[str], data: Path, work: Path, trials: str) -> None:
    """Search every method alike on the validation split; keep the best model files."""
    out = work / f"{study}-tuning"
    shared = sets(STUDIES[study].train)
    command("tune", *models, "--data", data, "--trials", trials, "--out", out, *shared)
    kept = BENCHMARKS / "tuned" / study
    kept.mkdir(parents=True, exist_ok=True)
    for model in models:
        shutil.copy(out / model / "best.toml", kept / f"{model}.toml")
    shutil.copy(out / "tuning.md", kept / "tuning.md")


def sets(keys: tuple[str, ...]) -> list[str]:
    """The words of ``--set`` for each key."""
    return [word for key in keys for word in ("--set", key)]


if __name__ == "__main__":
    main()
