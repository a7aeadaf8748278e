"""What the generator makes: table ``[synthetic]`` of a definition."""

from __future__ import annotations

from pydantic import Field, model_validator

from hisac_rec.config import Strict


class SyntheticConfig(Strict):
    """Parameters of the generator of :mod:`hisac_rec.preparation.synthetic`."""

    users: int = Field(default=4000, ge=1)
    """Number of users."""
    items: int = Field(default=5000, ge=2)
    """Number of items; at least the number of leaves."""
    branches: list[int] = Field(default=[32, 16], min_length=1)
    """Children of a node, per level of the tree of interests; the product is the leaves."""
    head_interests: int = Field(default=3, ge=1)
    """Leaves that a user meets all the time."""
    tail_interests: int = Field(default=6, ge=0)
    """Leaves that a user meets now and then, over the whole history."""
    tail_weight: float = Field(default=0.2, ge=0, le=1)
    """Share of sessions that belong to tail interests."""
    noise_weight: float = Field(default=0.1, ge=0, le=1)
    """Share of history events on random items."""
    session_length: int = Field(default=5, ge=1)
    """Consecutive events of one interest."""
    length_min: int = Field(default=200, ge=1)
    """Shortest history."""
    length_median: int = Field(default=500, ge=1)
    """Median history length; lengths are log-normal, clipped."""
    length_max: int = Field(default=2000, ge=1)
    """Longest history; 10000 is what the paper compresses."""
    length_sigma: float = Field(default=0.6, ge=0)
    """Spread of the log-normal lengths."""
    content_dim: int = Field(default=32, ge=1)
    """Width of the content embeddings."""
    content_noise: float = Field(default=0.15, ge=0)
    """Length of an item's random offset from its leaf; a leaf's from its branch is 0.5."""
    category_noise: float = Field(default=0.1, ge=0, le=1)
    """Share of items whose ``category`` is not their leaf's parent."""
    fresh_items: float = Field(default=0.1, ge=0, lt=1)
    """Share of items that appear only in the course of the period (cold items)."""
    turnover: float = Field(default=0.0, ge=0, lt=1)
    """Share of the items of each leaf that live for a twelfth of the period: a catalogue that turns
    over, of which most is new after training."""
    candidates: int = Field(default=8, ge=1)
    """Candidates of a request."""
    head_candidates: float = Field(default=0.25, ge=0, le=1)
    """Share of candidates from the user's head interests."""
    tail_candidates: float = Field(default=0.25, ge=0, le=1)
    """Share of candidates from the user's tail interests; the rest is random."""
    train_requests: int = Field(default=5, ge=1)
    """Requests a user makes in the training period."""
    valid_requests: int = Field(default=1, ge=1)
    """Requests a user makes in the validation period."""
    test_requests: int = Field(default=2, ge=1)
    """Requests a user makes in the test period."""
    bias: float = -2.6
    """Log-odds of a click of a neutral user on a neutral item outside all interests."""
    gain: float = 3.5
    """Log-odds added by a candidate from a head interest."""
    tail_affinity: float = Field(default=0.9, ge=0, le=1)
    """Affinity to tail interests, as a share of that to head interests."""
    sibling_affinity: float = Field(default=0.2, ge=0, le=1)
    """Affinity to leaves under the same parent as an interest."""
    quality_scale: float = Field(default=0.6, ge=0)
    """Standard deviation of item quality, in log-odds."""
    user_bias_scale: float = Field(default=0.3, ge=0)
    """Standard deviation of the user's bias, in log-odds."""
    seed: int = Field(default=0, ge=0)
    """Every number of the data set follows from the parameters and this seed."""

    @property
    def leaves(self) -> int:
        """Number of leaves of the tree of interests."""
        product = 1
        for children in self.branches:
            product *= children
        return product

    @model_validator(mode="after")
    def _consistent(self) -> SyntheticConfig:
        if min(self.branches) < 1:
            raise ValueError(f"branches = {self.branches}: every level needs at least 1 child")
        if self.items < self.leaves:
            raise ValueError(
                f"items = {self.items} is fewer than the {self.leaves} leaves of branches = "
                f"{self.branches}; every leaf needs an item"
            )
        if not self.length_min <= self.length_median <= self.length_max:
            raise ValueError("expected length_min <= length_median <= length_max")
        if self.head_candidates + self.tail_candidates > 1:
            raise ValueError("head_candidates + tail_candidates must be at most 1")
        if self.tail_interests == 0 and (self.tail_weight > 0 or self.tail_candidates > 0):
            raise ValueError("tail_interests = 0 needs tail_weight = 0 and tail_candidates = 0")
        return self
