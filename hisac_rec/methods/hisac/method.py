"""HiSAC as a history method: vote, activate, route; candidates attend to the agents.

Legend: R requests, T events, U occupied leaves, K agent slots, J slots of rejected leaves, N
candidates, d value width, s semantic width, D levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hisac_rec.config import Strict
from hisac_rec.data.bags import Grouping
from hisac_rec.data.inputs import Side
from hisac_rec.errors import UserError
from hisac_rec.methods.base import (
    Candidates,
    History,
    HistoryMethod,
    MethodShape,
    offsets_of_rows,
)
from hisac_rec.methods.events import PooledEvents
from hisac_rec.methods.hisac.config import HiSACConfig, tree_rules
from hisac_rec.methods.hisac.leaf_geometry import CodeWords
from hisac_rec.methods.hisac.leaf_routing import route_leaves
from hisac_rec.methods.hisac.leaves import (
    Agents,
    Leaves,
    path_numbers,
    path_vectors,
    path_words,
)
from hisac_rec.methods.hisac.reach import nearest_agents, route_reached
from hisac_rec.methods.hisac.strength import (
    AGAINST_FEATURES,
    VOTE_FEATURES,
    path_vote_features,
    vote_tiers,
)
from hisac_rec.methods.hisac.tree import ByAgent, ByLeaf
from hisac_rec.methods.hisac.voting import to_slots
from hisac_rec.methods.parts.agents import AgentMemory, AgentReader
from hisac_rec.methods.parts.attention import CandidateAttention, Kinship
from hisac_rec.methods.recent import newest_events
from hisac_rec.ops.soft_route import Frozen, route_with_mass

MOST_PATHS = 1 << 43
"""Paths of codes that can be told apart: each request's have numbers of their own, and those
of a million requests must fit 63 bits."""


@dataclass
class InterestMemory(AgentMemory):
    """The agents of :class:`AgentMemory` (``vectors`` are zhat, ``events`` the votes), named.

    Args:
        path: [R, K] int64 leaf path of each agent; -1 where unfilled.
        newest: [R, S, d] the newest events as they are and [R, S] which are there, where
            ``HiSACConfig.newest`` keeps some.
        against_path: [R, J] int64 rejected leaves, those with most votes against them, agents or
            not; -1 where unfilled. None where no event votes against anything.
        against: [R, J] float32 votes against each; 0 where unfilled.
    """

    path: Tensor
    newest: tuple[Tensor, Tensor] | None = None
    against_path: Tensor | None = None
    against: Tensor | None = None


class HiSAC(HistoryMethod):
    """Hierarchical voting, sparse activation, soft routing, candidate attention.

    Source: HiSAC, arXiv 2602.21009; docs/method.md. The candidate attention has a
    learned null slot, which the paper does not mention.

    Raises:
        UserError: the data set has no codebook or ``keep`` does not fit its levels.
    """

    Config: ClassVar[type[Strict]] = HiSACConfig
    compresses: bool = True
    memory = InterestMemory
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
        self.rules = tree_rules(config, shape)
        for level, words in enumerate(shape.codebook):
            self.register_buffer(f"codebook_{level}", words.detach().clone())
        self.words = CodeWords()
        self.reader = AgentReader(config, shape.dim)
        self.interests = self.reader.interests
        if config.semantic_attention:
            self.semantic_gain = nn.Parameter(torch.ones(config.heads))
        if config.newest:
            self.interests += 1
            self.short = CandidateAttention(shape.dim, config.heads)
        of_level = VOTE_FEATURES + AGAINST_FEATURES * int(self.rules.signed)
        told = of_level * len(self.code_counts) * int(config.path_votes != "off")
        if told:
            self.strength = _two_layers(told, shape.dim)
            if self.rules.signed and config.path_votes == "gate":
                # Scaling cannot say that a candidate's path was rejected where nothing is attended.
                self.standing = _two_layers(told, shape.dim)
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

    @classmethod
    def grouping(cls, config: HiSACConfig, shape: MethodShape) -> Grouping | None:
        if config.semantics == "vectors":
            return None
        rules = tree_rules(config, shape)
        if config.reach:
            return ByAgent(rules, shape.codebook, config.reach)
        return ByLeaf(rules.code_counts)

    @classmethod
    def newest(cls, config: HiSACConfig) -> int:
        return config.newest

    @property
    def codebook(self) -> list[Tensor]:
        """D tensors [C_l, s]."""
        return [getattr(self, f"codebook_{level}") for level in range(len(self.code_counts))]

    def compress(self, history: History) -> InterestMemory:
        """Votes -> agents -> routed vectors, candidate-independent."""
        leaves, agents = self.rules.grow(history.frozen)
        slot, filled = to_slots(agents, history.num_requests)
        vectors, mass = self._route(history, leaves, agents, slot, filled)
        if self.config.routing == "events" or mass is None:
            votes = agents.votes.to(vectors.dtype) / leaves.unit
            events = _spread(votes, agents, slot, filled, empty=0)
        else:  # what was shared out to each agent
            events = mass * filled
        return InterestMemory(
            vectors=vectors * filled.unsqueeze(-1),
            filled=filled,
            events=events,
            path=_spread(agents.path, agents, slot, filled, empty=-1),
            newest=newest_events(history, self.config.newest) if self.config.newest else None,
            **self._rejected(leaves, history.num_requests, vectors.dtype),
        )

    def _rejected(self, leaves: Leaves, requests: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """The memory's votes against leaves, where events can vote so."""
        if not self.rules.signed:
            return {}
        found = self.rules.rejected(leaves)
        at = (found, *to_slots(found, requests))
        return {
            "against_path": _spread(found.path, *at, empty=-1),
            "against": _spread(found.votes.to(dtype) / leaves.unit, *at, empty=0),
        }

    def restore(self, held: dict[str, Tensor], newest: History) -> InterestMemory:
        """The agents as they were held; the newest events as they are."""
        count = self.config.newest
        return InterestMemory(**held, newest=newest_events(newest, count) if count else None)

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
            if gated and self.rules.signed:
                attended = attended + self.standing(told[0].to(interests.dtype)).unsqueeze(1)
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
        """Cosines of the candidates' and the agents' semantic vectors. O(N s C + R K D s)."""
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
        vectors = path_vectors(memory.path.clamp_min(0).flatten(), self.codebook)
        squares = torch.linalg.vecdot(vectors, vectors).view(memory.path.shape)
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
        if config.reach:
            return _slots(self._reached(history, leaves, agents), agents, slot, filled), None
        # Events of one leaf share their key, so route the leaves' sums, each counted by votes.
        sums = history.sums(leaves.of_event, len(leaves.path))
        if config.routing == "events":
            geometry = self.rules.geometry(leaves, agents, len(filled), codebook, self.words)
            return _slots(route_leaves(sums, geometry), agents, slot, filled), None
        leaf_vectors = path_vectors(leaves.path, codebook)
        queries = _slots(leaf_vectors[agents.leaf], agents, slot, filled)
        offsets = offsets_of_rows(leaves.request, filled.shape[0])
        return route_with_mass(sums, Frozen(queries, leaf_vectors, leaves.events, offsets, *how))

    def _reached(self, history: History, leaves: Leaves, agents: Agents) -> Tensor:
        """[A, d]: every agent's weighted sum of the events that reach it."""
        requests, codebook = history.num_requests, self.codebook
        geometry = self.rules.geometry(leaves, agents, requests, codebook, self.words)
        reached = nearest_agents(geometry, self.config.reach)
        events = history.events
        if not isinstance(events, PooledEvents):
            sums = history.sums(leaves.of_event, len(leaves.path))
            return route_reached(sums, reached, len(agents.leaf))
        # Rows have been added up by agent where they are; type and age have not.
        own = events.own.sums(leaves.of_event, len(leaves.path))
        return events.groups + route_reached(own, reached, len(agents.leaf))


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
