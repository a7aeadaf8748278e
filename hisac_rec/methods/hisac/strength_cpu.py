"""Votes along a candidate's path on a CPU, without a row of agents for each candidate.

Legend: R requests, N candidates, K agent slots, D levels.
"""

from __future__ import annotations

import numpy as np

from hisac_rec.ops.compiled import Floats, Ints, compiled


@compiled
def votes_on_path(path: Ints, votes: Floats, node: Ints, request: Ints, counts: Ints) -> Floats:
    """[N, D] votes of the agents below each candidate's node, the leaf first. O((N + R) K D).

    Args:
        path: [R, K] leaf of each agent, -1 where unfilled.
        votes: [R, K].
        node: [N] leaf of each candidate.
        request: [N] its request.
        counts: [D] codes of each level.
    """
    found = np.zeros((len(node), len(counts)), votes.dtype)
    prefix, own = path.copy(), node.copy()
    for level in range(len(counts)):
        for candidate in range(len(own)):
            agents, of_agents = prefix[request[candidate]], votes[request[candidate]]
            for slot in range(len(agents)):
                if agents[slot] == own[candidate]:
                    found[candidate, level] += of_agents[slot]
        # Floor division keeps the -1 of unfilled slots: it never is a candidate's node.
        prefix //= counts[len(counts) - 1 - level]
        own //= counts[len(counts) - 1 - level]
    return found
