"""DIN: a small network weighs every event of the history for every candidate.

Legend: R requests, T events, N candidates, P pairs of blocks (parts/pairs.py) of Bc
candidates and Bt events, h hidden units, d width; N L is the number of (candidate, event)
pairs of the same request.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hisac_rec.config import Strict
from hisac_rec.methods.base import Candidates, History, HistoryMethod, MethodShape
from hisac_rec.methods.parts.pairs import Pairs, dot_scores, make_pairs, softmax, weighted_sum

STORED_ELEMENTS = 1 << 26
"""Up to so many numbers of the hidden layer are stored for the backward pass; beyond it the
hidden layer is computed again there."""


class DINConfig(Strict):
    """``[history]`` keys of ``method = "din"``."""

    hidden: int = Field(default=36, gt=0)
    """Hidden units h of the network that weighs an event for a candidate."""
    weights: Literal["plain", "softmax"] = "plain"
    """"plain": the sum over events as in the paper, which keeps how strong an interest is;
    "softmax": weights normalised over the history, as later implementations offer."""


class Method(HistoryMethod):
    """``sum_i w(q, e_i) e_i`` with ``w = MLP(q, e_i, q - e_i, q * e_i)``.

    Source: Deep Interest Network, arXiv 1706.06978, equation 3 and figure 2, with one hidden
    layer of 36 units and PReLU. Left out: Dice, which the paper sets beside PReLU as the
    other activation (it needs batch statistics over all pairs), the mini-batch aware
    regularisation (an optimiser's business), and the outer product of the published code,
    which is an element-wise one there too.

    Of the first layer only the part over ``q * e_i`` is computed per pair: those over q, e_i
    and their difference are linear, so they cost O(N h d + T h d) and are added.
    """

    Config: ClassVar[type[Strict]] = DINConfig
    search: ClassVar[dict[str, list[Any]]] = {
        "hidden": [16, 36, 64],
        "weights": ["plain", "softmax"],
    }

    def __init__(self, config: DINConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        self.normalised = config.weights == "softmax"
        self.hidden = nn.Linear(4 * shape.dim, config.hidden)
        self.activation = nn.PReLU(config.hidden)
        self.weight = nn.Linear(config.hidden, 1)

    def compress(self, history: History) -> History:
        """The history itself: nothing can be said before the candidate is known."""
        return history

    def read(self, memory: History, candidates: Candidates) -> Tensor:
        """[N, 1, d]. O(N L h d) multiplications, O(N L + STORED_ELEMENTS) memory."""
        events, wanted = memory.values, candidates.values
        pairs = make_pairs(candidates.offsets, memory.offsets, len(wanted), len(events))
        scores = self._scores(pairs, wanted, events)
        plain = not self.normalised
        weights = scores.masked_fill(~pairs.mask, 0) if plain else softmax(pairs, scores)
        return weighted_sum(pairs, weights, events).unsqueeze(1)

    def _scores(self, pairs: Pairs, wanted: Tensor, events: Tensor) -> Tensor:
        """[P, Bc, Bt] outputs of the network.

        PReLU(x) = a x + (1 - a) relu(x): the first part is linear, hence a dot product of d
        numbers per pair, and only the second passes through h hidden units per pair.
        """
        of_q, of_e, of_difference, of_product = self.hidden.weight.chunk(4, dim=1)
        on_candidates = functional.linear(wanted, of_q + of_difference, self.hidden.bias)
        on_events = functional.linear(events, of_e - of_difference)
        out, slope = self.weight.weight[0], self.activation.weight
        passed = out * slope
        scores = dot_scores(pairs, wanted * (passed @ of_product), events) + self.weight.bias
        scores = scores + pairs.of_candidates(on_candidates @ passed).unsqueeze(2)
        scores = scores + pairs.of_events(on_events @ passed).unsqueeze(1)
        rows = (wanted, events, on_candidates, on_events, of_product, out - passed)
        count, candidate_size, event_size = pairs.shape
        per_pair = candidate_size * event_size * len(of_product)
        if not torch.is_grad_enabled() or count * per_pair <= STORED_ELEMENTS:
            parts = [self._rectified(part, *rows) for part in pairs.chunks(per_pair)]
        else:
            parts = [
                checkpoint(
                    self._rectified, part, *rows, use_reentrant=False, preserve_rng_state=False
                )
                for part in pairs.chunks(per_pair)
            ]
        return scores + torch.cat(parts)

    def _rectified(
        self,
        pairs: Pairs,
        wanted: Tensor,
        events: Tensor,
        on_candidates: Tensor,
        on_events: Tensor,
        of_product: Tensor,
        out: Tensor,
    ) -> Tensor:
        """[p, Bc, Bt]: the sum of the rectified hidden units of a part of the pairs."""
        count, candidate_size, event_size = pairs.shape
        # The product layer goes to the candidate's side, e (q * W_p) instead of W_p (q * e):
        # no tensor of pairs is d wide. Hidden units come last, where they lie together.
        queries = (pairs.of_candidates(wanted).unsqueeze(2) * of_product).flatten(1, 2)
        bias = pairs.of_candidates(on_candidates).flatten(1).unsqueeze(1)
        hidden = torch.baddbmm(bias, pairs.of_events(events), queries.transpose(1, 2))
        hidden = hidden.view(count, event_size, candidate_size, len(of_product))
        # Not in place on the view: autograd would copy the gradient twice.
        hidden = (hidden + pairs.of_events(on_events).unsqueeze(2)).relu_()
        scores = functional.linear(hidden.flatten(0, 2), out.unsqueeze(0))
        return scores.view(count, event_size, candidate_size).transpose(1, 2)
