"""Similarities of candidates and slots on a CPU, look-up by look-up.

Legend: R requests, N candidates, K memory slots, C code words, D levels, n blocks of B.
"""

from __future__ import annotations

import numpy as np

from hisac_rec.ops.compiled import Floats, Ints, compiled


@compiled
def block_similarities(
    products: Floats, words: Ints, scale: Floats, request: Ints, index: Ints
) -> Floats:
    """[n, B, K+1] similarity of each block's candidates and its request's slots, 0 last.
    O(N K D).

    Args:
        products: [N, C] each candidate's vector times each code word.
        words: [R, K, D] code words of each slot.
        scale: [R, K] of each slot.
        request: [n] of each block.
        index: [n, B] candidate of each place.
    """
    blocks, places = index.shape
    slots, levels = words.shape[1], words.shape[2]
    found = np.zeros((blocks, places, slots + 1), products.dtype)
    for block in range(blocks):
        own, of_slot = words[request[block]], scale[request[block]]
        for place in range(places):
            row, near = products[index[block, place]], found[block, place]
            for slot in range(slots):
                for level in range(levels):
                    near[slot] += row[own[slot, level]]
                near[slot] *= of_slot[slot]
    return found
