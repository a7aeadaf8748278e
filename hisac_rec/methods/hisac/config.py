"""``[history]`` keys of HiSAC: every choice that the paper leaves open.

Legend: T events, U occupied leaves, K agents, s semantic width, d value width, D levels.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from hisac_rec.data.votes import Votes, vote_weights
from hisac_rec.methods.base import MethodShape
from hisac_rec.methods.hisac.tree import TreeRules
from hisac_rec.methods.parts.agents import ReaderConfig
from hisac_rec.ops.soft_route import Routing


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
    votes: Votes | None = None
    """Event type, or a pattern of several ("rating [0-3]*") -> what an event of it votes for its
    leaf; types not named: 1. 0: it is routed and does not vote; below 0: it votes against, which
    candidates on its path are told (``path_votes``). Unset: as the data set's definition says,
    else one event, one vote."""
    routing: Routing = "events"
    """Which axis alpha is normalised over. "events" (paper): each agent reads the whole
    history, near events most. "agents": each event is shared out among the agents, so agents
    add up to the history. "hard": each event goes to its nearest agent alone."""
    reach: int = Field(default=0, ge=0)
    """So many nearest agents an event reaches, alpha being normalised over what reaches an agent;
    0: all of them (paper). With ``tables.pool`` the agents' own sums cross the network then, not
    the leaves'. Only for ``routing = "events"`` and ``semantics = "codes"``."""
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

    @model_validator(mode="after")
    def _reach_is_of_leaves(self) -> HiSACConfig:
        if self.reach and (self.routing != "events" or self.semantics != "codes"):
            raise ValueError("reach needs routing = 'events' and semantics = 'codes'")
        return self


def tree_rules(config: HiSACConfig, shape: MethodShape) -> TreeRules:
    """What of the configuration no training changes.

    Raises:
        UserError: ``votes`` names an event type that the data set does not have.
    """
    votes = shape.votes if config.votes is None else config.votes
    return TreeRules(
        code_counts=tuple(len(words) for words in shape.codebook),
        keep=tuple(config.keep),
        tail_agents=config.tail_agents,
        vote_half_life=config.vote_half_life,
        tau=config.tau,
        squared=config.squared_distance,
        weights=vote_weights(votes, shape.event_types),
    )
