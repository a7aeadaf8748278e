"""HiSAC as a history method: vote, activate, route; candidates attend to the agents.

Legend: R requests, T events, U occupied leaves, K agent slots, N candidates, d value width,
s semantic width, D levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from hisac_rec.config import Strict
from hisac_rec.data.inputs import Side
from hisac_rec.errors import UserError
from hisac_rec.methods.base import (
    Candidates,
    History,
    HistoryMethod,
    MethodShape,
    offsets_of_rows,
    request_of_rows,
)
from hisac_rec.methods.hisac.leaf_routing import leaf_geometry, route_leaves
from hisac_rec.methods.hisac.strength import VOTE_FEATURES, path_vote_features, vote_tiers
from hisac_rec.methods.hisac.voting import (
    VOTE_UNIT,
    Agents,
    Leaves,
    activate,
    count_leaves,
    path_numbers,
    path_vectors,
    path_words,
    recent_votes,
    to_slots,
)
from hisac_rec.methods.parts.agents import AgentMemory, AgentReader, ReaderConfig
from hisac_rec.methods.parts.attention import CandidateAttention, Kinship
from hisac_rec.methods.recent import newest_events
from hisac_rec.ops.soft_route import Frozen, Routing, route_with_mass

MOST_PATHS = 1 << 43
"""Paths of codes that can be told apart: each request's have numbers of their own, and those
of a million requests must fit 63 bits."""


class HiSACConfig(ReaderConfig):
    """``[history]`` keys of ``method = "hisac"``; the paper leaves all of them open."""

    keep: list[PositiveInt] = [16, 8]
    """k^(l): children kept under each surviving parent, per codebook level. At most their
    product of agents. A value at or above the level's codes switches pruning off there."""
    tail_agents: int = Field(default=0, ge=0)
    """Leaves that pruning would drop and that are kept all the same, most votes first: agents
    reserved for the long tail, beside those of ``keep``. Not in the paper."""
    vote_half_life: float | None = Field(default=None, gt=0)
    """Recency-aware votes: an event so many events back in the history votes half as much as
    the newest; unset: one event, one vote. Not in the paper."""
    routing: Routing = "events"
    """Which axis alpha is normalised over. "events" (paper): each agent reads the whole
    history, near events most. "agents": each event is shared out among the agents, so agents
    add up to the history. "hard": each event goes to its nearest agent alone."""
    tau: float = Field(default=0.1, gt=0)
    """Routing temperature, in the unit of the (squared) distance between semantic vectors.
    Small: an agent averages its own leaf; large: every agent averages the whole history."""
    squared_distance: bool = False
    """Squared instead of plain L2 distance between events and agents."""
    semantics: Literal["codes", "vectors"] = "codes"
    """What an event's key e_i is: "codes" rebuilds it from its semantic ID (events of a leaf
    share one distance: cost O(T d + U K d)); "vectors" looks up the item's own frozen vector
    (a sharded fp16 table; cost O(T K (s + d)))."""
    semantic_attention: bool = True
    """Let candidates find agents by frozen semantics as well as by trained embeddings: a
    learned multiple, per head, of the cosine between the candidate's and the agent's semantic
    vectors is added to the scores. Not in the paper; a candidate never seen in training still
    finds its interest."""
    candidate_semantics: Literal["codes", "vectors"] = "codes"
    """Where a candidate stands for ``semantic_attention`` and ``tiers``: "codes" rebuilds its
    vector from its semantic ID, "vectors" looks up its own frozen one, once a candidate."""
    tiers: int = Field(default=0, ge=0, le=1000)
    """Tell the ranker how much of the history is how much like the candidate: votes by the
    cosine of the agents they lie on, in so many tiers of equal width over -1..1, as one more
    interest vector (SimTier, arXiv 2407.19467, on agents instead of events); 0: off."""
    newest: int = Field(default=0, ge=0)
    """So many of the newest events stay uncompressed beside the agents; candidates attend to
    them on their own, as one more interest vector. Not in the paper, where the short sequence
    is the ranker's: what is new is not yet an interest."""
    path_votes: Literal["gate", "add", "off"] = "gate"
    """Tell the ranker how strong the candidate's own interest is, by the agents' votes along
    the candidate's semantic-ID path, per level: a small network of them scales the attended
    vector ("gate") or is added to it ("add"). Not in the paper: routed vectors are averages
    and forget how many events stand behind them."""


@dataclass
class InterestMemory(AgentMemory):
    """The agents of :class:`AgentMemory` (``vectors`` are zhat, ``events`` the votes), named.

    Args:
        path: [R, K] int64 leaf path of each agent; -1 where unfilled.
        newest: [R, S, d] the newest events as they are and [R, S] which are there, where
            ``HiSACConfig.newest`` keeps some.
    """

    path: Tensor
    newest: tuple[Tensor, Tensor] | None = None


class HiSAC(HistoryMethod):
    """Hierarchical voting, sparse activation, soft routing, candidate attention.

    Source: HiSAC, arXiv 2602.21009; docs/method.md. The candidate attention has a
    learned null slot, which the paper does not mention.

    Raises:
        UserError: the data set has no codebook or ``keep`` does not fit its levels.
    """

    Config: ClassVar[type[Strict]] = HiSACConfig
    compresses: bool = True
    search: ClassVar[dict[str, list[Any]]] = {
        # A number at or above a level's codes prunes nothing there.
        "keep": [[8, 4], [16, 8], [32, 16], [1024, 1024]],
        "tau": [0.03, 0.1, 0.3, 1.0],
        "squared_distance": [False, True],
        "weight_power": [0.0, 0.5, 1.0],
        "path_votes": ["gate", "add", "off"],
        "semantic_attention": [True, False],
        "routing": ["events", "agents", "hard"],
        "tail_agents": [0, 16],
        "profile": [True, False],
    }

    def __init__(self, config: HiSACConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        if not shape.codebook:
            raise UserError(
                "history.method = 'hisac' needs semantic ids; run 'hisac-rec semantic-ids' first"
            )
        if len(config.keep) != len(shape.codebook):
            raise UserError(
                f"history.keep = {config.keep}: the codebook has {len(shape.codebook)} levels; "
                "give one number per level"
            )
        self.config = config
        self.code_counts = tuple(len(words) for words in shape.codebook)
        if prod(self.code_counts) > MOST_PATHS:
            raise UserError(
                f"history.method = 'hisac': a codebook of {list(self.code_counts)} codes has more "
                f"than {MOST_PATHS:,} paths; fit fewer levels or codes: "
                "hisac-rec semantic-ids DATA --set codes=[...]"
            )
        for level, words in enumerate(shape.codebook):
            self.register_buffer(f"codebook_{level}", words.detach().clone())
        self.reader = AgentReader(config, shape.dim)
        self.interests = self.reader.interests
        if config.semantic_attention:
            self.semantic_gain = nn.Parameter(torch.ones(config.heads))
        if config.newest:
            self.interests += 1
            self.short = CandidateAttention(shape.dim, config.heads)
        told = VOTE_FEATURES * len(self.code_counts) * int(config.path_votes != "off")
        if told:
            self.strength = _two_layers(told, shape.dim)
        if config.tiers:
            self.interests += 1
            self.likeness = _two_layers(told + VOTE_FEATURES * config.tiers, shape.dim)

    @classmethod
    def vector_sides(cls, config: HiSACConfig) -> tuple[Side, ...]:
        sides: tuple[Side, ...] = ("history",) if config.semantics == "vectors" else ()
        looked_at = config.semantic_attention or config.tiers
        if config.candidate_semantics == "vectors" and looked_at:
            sides += ("candidate",)
        return sides

    @property
    def codebook(self) -> list[Tensor]:
        """D tensors [C_l, s]."""
        return [getattr(self, f"codebook_{level}") for level in range(len(self.code_counts))]

    def compress(self, history: History) -> InterestMemory:
        """Votes -> agents -> routed vectors, candidate-independent."""
        requests = history.num_requests
        request = request_of_rows(history.offsets, history.num_events)
        votes, unit = None, 1
        if self.config.vote_half_life is not None:
            votes = recent_votes(history.offsets, request, self.config.vote_half_life)
            unit = VOTE_UNIT
        leaves = count_leaves(history.codes, request, requests, self.code_counts, votes)
        agents = activate(leaves, self.config.keep, self.code_counts, self.config.tail_agents)
        slot, filled = to_slots(agents, requests)
        vectors, mass = self._route(history, leaves, agents, slot, filled)
        if self.config.routing == "events" or mass is None:
            events = _spread(agents.votes.to(vectors.dtype) / unit, agents, slot, filled, empty=0)
        else:  # what was shared out to each agent
            events = mass * filled
        return InterestMemory(
            vectors=vectors * filled.unsqueeze(-1),
            filled=filled,
            events=events,
            path=_spread(agents.path, agents, slot, filled, empty=-1),
            newest=newest_events(history, self.config.newest) if self.config.newest else None,
        )

    def read(self, memory: InterestMemory, candidates: Candidates) -> Tensor:
        """[N, V, d]: target attention over the agents; their mean beside it."""
        config = self.config
        kinship = None
        if config.semantic_attention or config.tiers:
            kinship = self._kinship(memory, candidates)
        interests = self.reader(memory, candidates, kinship if config.semantic_attention else None)
        told: list[Tensor] = []
        if config.path_votes != "off":
            told.append(path_vote_features(memory, candidates, self.code_counts))
            strength = self.strength(told[0].to(interests.dtype)).unsqueeze(1)
            attended, rest = interests[:, :1], interests[:, 1:]
            gated = config.path_votes == "gate"
            attended = attended * (1 + strength) if gated else attended + strength
            interests = torch.cat([attended, rest], dim=1)
        if config.tiers and kinship is not None:
            told.append(vote_tiers(memory, candidates, kinship, config.tiers))
            likeness = self.likeness(torch.cat(told, dim=1).to(interests.dtype))
            interests = torch.cat([interests, likeness.unsqueeze(1)], dim=1)
        if memory.newest is not None:
            short = self.short(candidates.values, candidates.offsets, *memory.newest, None)
            interests = torch.cat([interests, short.unsqueeze(1)], dim=1)
        return interests

    def _kinship(self, memory: InterestMemory, candidates: Candidates) -> Kinship:
        """Cosines of the candidates' and the agents' semantic vectors. O(N s C + R K D^2)."""
        if self.config.candidate_semantics == "vectors":
            if candidates.vectors is None:
                raise ValueError("candidate_semantics = 'vectors' needs Candidates.vectors")
            wanted = candidates.vectors.to(self.codebook[0].dtype)
        else:
            wanted = path_vectors(path_numbers(candidates.codes, self.code_counts), self.codebook)
        wanted = nn.functional.normalize(wanted, dim=-1)
        if candidates.placed is not None:  # like nothing: the embeddings alone decide
            wanted = wanted * candidates.placed.unsqueeze(1)
        words = torch.cat(self.codebook)  # [C, s]
        at = path_words(memory.path.clamp_min(0), self.code_counts)
        gram = words @ words.T
        squares = gram[at.unsqueeze(-1), at.unsqueeze(-2)].sum((-1, -2))
        scale = squares.clamp_min(torch.finfo(squares.dtype).tiny).rsqrt() * memory.filled
        gain = self.semantic_gain if self.config.semantic_attention else scale.new_zeros(1)
        return Kinship(wanted @ words.T, at, scale, gain)

    def _route(
        self, history: History, leaves: Leaves, agents: Agents, slot: Tensor, filled: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Routed vectors [R, K, d], and the mass [R, K] that arrived where it is not the votes."""
        codebook, config = self.codebook, self.config
        how = (config.tau, config.squared_distance, config.routing, filled)
        if config.semantics == "vectors":
            if history.vectors is None:
                raise ValueError("semantics = 'vectors' needs History.vectors")
            queries = _slots(path_vectors(agents.path, codebook), agents, slot, filled)
            keys = history.vectors.to(queries.dtype)
            return route_with_mass(
                history.values, Frozen(queries, keys, None, history.offsets, *how)
            )
        # Events of one leaf share their key, so route the leaves' sums, each counted by votes.
        sums = history.sums(leaves.of_event, len(leaves.path))
        if config.routing == "events":
            geometry = leaf_geometry(
                leaves,
                agents,
                filled.shape[0],
                codebook,
                tau=config.tau,
                squared=config.squared_distance,
            )
            return _slots(route_leaves(sums, geometry), agents, slot, filled), None
        leaf_vectors = path_vectors(leaves.path, codebook)
        queries = _slots(leaf_vectors[agents.leaf], agents, slot, filled)
        offsets = offsets_of_rows(leaves.request, filled.shape[0])
        return route_with_mass(sums, Frozen(queries, leaf_vectors, leaves.events, offsets, *how))


def _spread(
    values: Tensor, agents: Agents, slot: Tensor, filled: Tensor, *, empty: float
) -> Tensor:
    """[A] -> [R, K], ``empty`` where unfilled."""
    dense = values.new_full(filled.shape, empty)
    dense[agents.request, slot] = values
    return dense


def _slots(rows: Tensor, agents: Agents, slot: Tensor, filled: Tensor) -> Tensor:
    """[A, x] -> [R, K, x], zeros where unfilled."""
    at = agents.request * filled.shape[1] + slot
    dense = rows.new_zeros((filled.numel(), rows.shape[1]))
    return dense.index_copy(0, at, rows).unflatten(0, filled.shape)


def _two_layers(inputs: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, dim), nn.ReLU(), nn.Linear(dim, dim))
