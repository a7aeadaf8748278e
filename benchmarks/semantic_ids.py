"""How well do semantic IDs tell what a user will like? No model is trained.

    python benchmarks/semantic_ids.py data/movielens-1m
    python benchmarks/semantic_ids.py data/shop --variant "source=text codes=[64,64]"

For every variant of ``[semantic_ids]``: the codes are fitted, and the valid split's liked
items are told from (a) liked items of other users and (b) what the user did not like, by two
scores: the share of the user's history that has the item's top-level code, and the mean of
``exp(-||e_item - z_path|| / 0.1)`` over the paths of the history, which is what HiSAC sees.

- lift: top-level share of liked items over that of others' liked items;
- co-liked: AUC of (a) within users; liked: GAUC of (b);
- trained: "liked" by paths on the last training requests. Where it is far above the valid
  figure, the embedding has learned the training labels by heart;
- agents: distinct paths in a history, median and 95th percentile.

Dense users x items: for small catalogues.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import sparse

from hisac_rec.data.contract import PreparedData, Split
from hisac_rec.evaluation.metrics import gauc
from hisac_rec.semantic.fit import make_quantiser, resolve_config
from hisac_rec.semantic.item_vectors import item_vectors
from hisac_rec.semantic.store import prefix_ids

TAU = 0.1
LAST_SHARE = 8
"""Of the training requests, the last 1/8 of each user are scored."""
VARIANTS = [
    *(f"source={source}" for source in ("text", "collaborative", "text+collaborative")),
    *(f"collaborative_weight={weight}" for weight in (0.3, 0.5, 0.85)),
    *(f"dim={dim}" for dim in (16, 32, 128)),
    *("codes=[16,64]", "codes=[32,32]", "codes=[64,64]", "codes=[128,128]", "codes=[16,16,16]"),
    *("method=rqvae", "seed=1", "seed=2"),
]


class Pairs(NamedTuple):
    """U users and their n scored (user, item) pairs."""

    history: sparse.csr_array
    """[U, I] events before the first scored request."""
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    liked: NDArray[np.bool_]


def main(
    data: Annotated[Path, typer.Argument(help="A prepared data set.")],
    variant: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE pairs, blank between.")
    ] = None,
) -> None:
    """Print one row per variant of [semantic_ids]."""
    prepared = PreparedData(data)
    valid, train = read_pairs(prepared, "valid"), read_pairs(prepared, "train")
    names = ("lift", "top: co-liked", "liked", "paths: co-liked", "liked", "trained", "agents")
    table = Table(title=f"{prepared.manifest.name}: {len(valid.user):,} pairs of valid")
    for name in ("variant", *names):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for text in variant or ["", *VARIANTS]:
        table.add_row(text or "as defined", *score(prepared, text.split(), valid, train))
    Console(width=140).print(table)


def read_pairs(data: PreparedData, split: Split) -> Pairs:
    """The last requests of each user of a split, and the history before them."""
    rows, cols, users, items, labels, first = [], [], [], [], [], 0
    for path in data.split_files(split):
        for row in data.read_parquet(str(path.relative_to(data.root))).to_pylist():
            requests = row["requests"]
            if split == "train":
                requests = requests[-max(1, len(requests) // LAST_SHARE) :]
            history = row["history_item"][: requests[0]["history_end"]]
            if history:
                rows += [first] * len(history)
                cols += history
                found = [item for request in requests for item in request["items"]]
                users += [first] * len(found)
                items += found
                labels += [label for request in requests for label in request["labels"]]
                first += 1
    ones = np.ones(len(rows), np.float32)
    history = sparse.coo_array((ones, (rows, cols)), shape=(first, data.manifest.items)).tocsr()
    return Pairs(history, np.array(users), np.array(items), np.array(labels) > 0)


def score(data: PreparedData, overrides: list[str], valid: Pairs, train: Pairs) -> list[str]:
    """The figures of one variant."""
    config = resolve_config(data, overrides)
    found = item_vectors(data, config)
    source = torch.from_numpy(found.vectors)
    quantiser = make_quantiser(config)
    quantiser.fit(source[found.fit])
    codes = quantiser.encode(source)
    vectors, paths = quantiser.embed(source), quantiser.codebook.path_vector(codes)
    leaf = prefix_ids(codes.numpy(), config.codes)[:, -1]
    top = (codes[:, :1] == codes[:, 0]).float().numpy()
    near = torch.exp(-torch.cdist(paths, vectors) / TAU).numpy()

    by_top, by_path = (mean_over_history(valid, kernel) for kernel in (top, near))
    rng = np.random.default_rng(0)
    user, item = valid.user[valid.liked], valid.item[valid.liked]
    other = rng.permutation(item)
    both = np.concatenate([user, user])
    is_liked = np.repeat([1, 0], len(user))

    def co_liked(scores: NDArray) -> float:
        return gauc(is_liked, np.concatenate([scores[user, item], scores[user, other]]), both)

    def liked(pairs: Pairs, scores: NDArray) -> float:
        return gauc(pairs.liked.astype(int), scores[pairs.user, pairs.item], pairs.user)

    coded = sparse.csr_array((np.ones(len(leaf)), (np.arange(len(leaf)), leaf)))
    agents = np.diff((valid.history @ coded).tocsr().indptr)
    return [
        f"{by_top[user, item].mean() / by_top[user, other].mean():.2f}",
        *(f"{figure:.4f}" for figure in (co_liked(by_top), liked(valid, by_top))),
        *(f"{figure:.4f}" for figure in (co_liked(by_path), liked(valid, by_path))),
        f"{liked(train, mean_over_history(train, near)):.4f}",
        f"{np.median(agents):.0f}, {np.quantile(agents, 0.95):.0f}",
    ]


def mean_over_history(pairs: Pairs, kernel: NDArray) -> NDArray:
    """[U, I]: mean of kernel[event, item] over each user's events."""
    return (pairs.history @ kernel) / pairs.history.sum(1)[:, None]


if __name__ == "__main__":
    typer.run(main)
