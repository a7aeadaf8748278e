"""Votes along a candidate's path, and by likeness, on a CPU, without a row of agents for each
candidate.

Legend: R requests, N candidates, K agent slots, D levels, C code words of all levels, B tiers.
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


@compiled
def votes_by_tier(
    products: Floats, words: Ints, scale: Floats, votes: Floats, request: Ints, tiers: int
) -> Floats:
    """[N, B] votes of the agents in each tier of their cosine with the candidate. O(N K D).

    Args:
        products: [N, C] each candidate's vector times each code word.
        words: [R, K, D] code words of each agent.
        scale: [R, K] of each agent.
        votes: [R, K], 0 where unfilled.
        request: [N] its request.
        tiers: B.
    """
    found = np.zeros((len(request), tiers), products.dtype)
    # Of the numbers' own width, as ``tier_of`` reckons: a wider one would round otherwise.
    one, half = products.dtype.type(1), products.dtype.type(tiers / 2)
    for candidate in range(len(request)):
        row, of_agents = products[candidate], words[request[candidate]]
        weight, behind = scale[request[candidate]], votes[request[candidate]]
        for slot in range(len(behind)):
            if behind[slot] == 0:
                continue
            cosine = row[of_agents[slot, 0]]
            for level in range(1, of_agents.shape[1]):
                cosine += row[of_agents[slot, level]]
            tier = int(np.floor((cosine * weight[slot] + one) * half))
            found[candidate, min(max(tier, 0), tiers - 1)] += behind[slot]
    return found
