"""One person's interest tree: what was voted for, what became an agent, what was pruned, and which
agents drew a candidate's score.

Legend: T events, U occupied leaves, A agents, N candidates, D levels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hisac_rec.data.bags import FrozenEvents
from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.contract import PreparedData, Split
from hisac_rec.data.units import RequestTable
from hisac_rec.errors import UserError
from hisac_rec.methods.hisac.leaves import path_vectors
from hisac_rec.methods.hisac.method import HiSAC
from hisac_rec.serving.requests import Asked
from hisac_rec.train.distributed import Ranks
from hisac_rec.train.evaluate import load_ranker
from hisac_rec.train.job import Job, open_job
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import Batches, outputs
from hisac_rec.train.run import RunFolder


@dataclass(frozen=True)
class Leaf:
    """An occupied leaf of the tree.

    Args:
        path: its codes, top level first.
        events: on it.
        items: the most frequent of them, as (name, times).
        votes: what they vote for it.
        against: what they vote against it.
        agent: whether it survived pruning.
        weight: of an agent, its share of all agents' votes; 0 for others.
        nearest: codes of the agent that takes most of it; its own where it is one.
        share: of that agent's routed vector that comes from this leaf's events.
    """

    path: tuple[int, ...]
    events: int
    items: list[tuple[str, int]]
    votes: float
    against: float
    agent: bool
    weight: float
    nearest: tuple[int, ...]
    share: float

    @property
    def said(self) -> str:
        """Votes for it and against it, for people."""
        return say_votes([self])


@dataclass(frozen=True)
class Drawn:
    """A candidate and what it saw.

    Args:
        item: its name.
        path: its codes.
        score: probability.
        label: what happened; None where nobody knows.
        attention: share of each agent, the largest first, mean over heads.
        nothing: share of the null slot: it matched nobody.
    """

    item: str
    path: tuple[int, ...]
    score: float
    label: float | None
    attention: list[tuple[tuple[int, ...], float]]
    nothing: float


@dataclass(frozen=True)
class Interests:
    """What :func:`inspect_user` found.

    Args:
        user: raw id.
        time: of the request.
        events: of the history.
        keep: children kept under each parent, per level.
        leaves: by votes, most first.
        candidates: of the request, by score.
    """

    user: str
    time: int
    events: int
    keep: list[int]
    leaves: list[Leaf]
    candidates: list[Drawn] = field(default_factory=list)

    @property
    def branches(self) -> dict[int, list[Leaf]]:
        """Top-level code -> its leaves, the branch with most votes first."""
        found: dict[int, list[Leaf]] = {}
        for leaf in self.leaves:
            found.setdefault(leaf.path[0], []).append(leaf)
        return dict(sorted(found.items(), key=lambda one: -sum(leaf.votes for leaf in one[1])))

    @property
    def pruned(self) -> int:
        """Events on leaves that are no agents."""
        return sum(leaf.events for leaf in self.leaves if not leaf.agent)


def say_votes(leaves: list[Leaf]) -> str:
    """The votes for leaves, and those against them where there are some: "12 votes, 3 against"."""
    totals = sum(leaf.votes for leaf in leaves), sum(leaf.against for leaf in leaves)
    votes, against = (f"{total:,.2f}".removesuffix(".00") for total in totals)
    return f"{votes} votes" + (f", {against} against" if totals[1] else "")


def inspect_user(
    run: RunFolder,
    data: PreparedData,
    ranks: Ranks,
    user: str,
    *,
    split: Split = "test",
    candidates: list[str] | None = None,
    checkpoint: str = "best",
    examples: int = 3,
) -> Interests:
    """Look at the last request of a user.

    Args:
        run: a trained run of HiSAC.
        data: the data it was trained on.
        ranks: one process.
        user: raw id.
        split: where the user's history is.
        candidates: raw ids to score instead of the request's own.
        checkpoint: "best", "last" or a step.
        examples: items named of a leaf.

    Raises:
        UserError: another history method, or an unknown user or item.
    """
    config = run.config()
    if config.method != "hisac":
        raise UserError(
            f"{run.root}: history.method = '{config.method}' grows no interest tree; only runs of "
            "'hisac' can be inspected"
        )
    job = open_job(config, data)
    view = _last_request(data, user, split, candidates)
    model = load_ranker(job, run.checkpoints().find(checkpoint), ranks)
    method = next(module for module in model.modules() if isinstance(module, HiSAC))
    seen: dict[str, Any] = {}

    def look(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], _out: Any) -> None:
        seen["weights"] = method.reader.attention.weights(*arguments, **keywords)

    hook = method.reader.attention.register_forward_hook(look, with_kwargs=True)
    found = None
    feeder = Batches(job, ranks).in_order(split, view, name_events=True)
    for batch, logits in outputs(model, Optimizers(model, config.train), ranks, feeder):
        if batch.num_candidates:
            main = logits.view(batch.num_candidates, -1)[:, 0].cpu()
            found = _describe(job, method, batch, main, seen["weights"].cpu(), examples)
            if candidates is not None:  # nobody knows what would have happened
                found.candidates[:] = [_unlabelled(one) for one in found.candidates]
    hook.remove()
    if found is None:
        raise UserError(f"{data.root}: user '{user}' has no request in the split '{split}'")
    return found


def _last_request(data: PreparedData, user: str, split: Split, candidates: list[str] | None) -> Any:
    names = data.read_parquet("vocab/user.parquet", ["id", "value"])
    known = dict(zip(names["value"].to_pylist(), names["id"].to_pylist(), strict=True))
    if user not in known:
        raise UserError(f"{data.root}: no user '{user}' (vocab/user.parquet holds the raw ids)")
    wanted = int(known[user])
    items = None
    if candidates is not None:
        raw = data.items["raw_id"].to_pylist()
        of_raw = {name: number for number, name in enumerate(raw)}
        unknown = [name for name in candidates if name not in of_raw]
        if unknown:
            raise UserError(
                f"{data.root}: no item '{unknown[0]}' (items.parquet holds the raw ids)"
            )
        items = np.array([of_raw[name] for name in candidates], np.int32)

    def view(table: RequestTable) -> RequestTable:
        own = np.flatnonzero(table.users["user"][table.user_row] == wanted)[-1:]
        if items is None or not len(own):
            return table.take(own)
        (at,) = own
        asked = Asked(
            user=np.array([wanted]),
            time=table.time[own],
            number=table.number[own],
            offsets=np.array([0, len(items)]),
            items=items,
            unknown_items=0,
        )
        most = int(table.history_end[at] - table.history_start[at])
        limit = most if most < table.visible[at] else None
        return asked.of_unit(table, limit)

    return view


def _describe(
    job: Job, method: HiSAC, batch: RequestBatch, logits: Tensor, weights: Tensor, examples: int
) -> Interests:
    counts = method.code_counts
    offsets, codes_of = batch.history_offsets, batch.history_codes
    events = FrozenEvents(offsets, codes_of, batch.history_type, batch.history_placed)
    leaves, agents = method.rules.grow(events)
    against = torch.zeros_like(leaves.votes) if leaves.against is None else leaves.against
    words = [table.double().cpu() for table in method.codebook]
    agent_of_leaf, share = _reached(method, leaves, agents, words)
    codes = [_codes(int(path), counts) for path in leaves.path]
    is_agent = set(agents.leaf.tolist())
    total = max(1, int(agents.votes.sum()))
    items = batch.history_items[batch.history_rows].numpy()
    names = job.data.items["raw_id"]
    titles = job.data.items["text"] if "text" in job.data.items.column_names else None

    def name(item: int) -> str:
        title = titles[item].as_py() if titles is not None else None
        return f"{names[item].as_py()}" + (f" {str(title)[:60]}" if title else "")

    of_event = leaves.of_event.numpy()
    described = []
    for leaf, path in enumerate(codes):
        common = Counter(items[of_event == leaf].tolist()).most_common(examples)
        described.append(
            Leaf(
                path=path,
                events=int(leaves.events[leaf]),
                items=[(name(item), times) for item, times in common],
                votes=int(leaves.votes[leaf]) / leaves.unit,
                against=int(against[leaf]) / leaves.unit,
                agent=leaf in is_agent,
                weight=int(leaves.votes[leaf]) / total if leaf in is_agent else 0.0,
                nearest=codes[int(agents.leaf[agent_of_leaf[leaf]])],
                share=float(share[leaf]),
            )
        )
    drawn = []
    agent_paths = [codes[int(leaf)] for leaf in agents.leaf]
    for row in range(batch.num_candidates):
        shares = weights[row, : len(agent_paths)]
        order = torch.argsort(shares, descending=True)[:5].tolist()
        drawn.append(
            Drawn(
                item=name(int(batch.candidate_items[row])),
                path=tuple(int(code) for code in batch.candidate_codes[row]),
                score=float(torch.sigmoid(logits[row])),
                label=None if batch.labels[row].isnan() else float(batch.labels[row]),
                attention=[(agent_paths[at], float(shares[at])) for at in order],
                nothing=float(weights[row, -1]),
            )
        )
    user, time, _, visible = batch.request_rows[0].tolist()
    vocabulary = job.data.read_parquet("vocab/user.parquet", ["value"])["value"]
    return Interests(
        user=str(vocabulary[user].as_py()),
        time=time,
        events=visible,
        keep=list(method.config.keep),
        leaves=sorted(described, key=lambda leaf: (-leaf.votes, leaf.against, leaf.path)),
        candidates=sorted(drawn, key=lambda one: -one.score),
    )


def _reached(method: HiSAC, leaves: Any, agents: Any, words: list[Tensor]) -> tuple[Tensor, Tensor]:
    """[U] the agent that takes most of each leaf, and the share of its vector that it makes."""
    places = path_vectors(leaves.path, words)
    distance = torch.cdist(places[agents.leaf], places)
    if method.config.squared_distance:
        distance = distance.square()
    logits = -distance / method.config.tau + leaves.events.double().log()
    alpha = logits.softmax(dim=1)  # [A, U]: over the events, those of a leaf together
    agent = alpha.argmax(dim=0)
    own = torch.full((len(leaves.path),), -1).index_copy(0, agents.leaf, torch.arange(len(alpha)))
    is_own = own >= 0
    agent = torch.where(is_own, own, agent)
    return agent, alpha[agent, torch.arange(alpha.shape[1])]


def _codes(path: int, counts: tuple[int, ...]) -> tuple[int, ...]:
    found: list[int] = []
    for count in reversed(counts):
        found.append(path % count)
        path //= count
    return tuple(reversed(found))


def _unlabelled(one: Drawn) -> Drawn:
    return Drawn(**(vars(one) | {"label": None}))
