"""Candidate attention on a CPU, candidate by candidate, over the filled slots of its own request.

A head is 16 numbers wide or so, too narrow to be added up fast: for each request, a column of all
its slots is laid together first. Legend: R requests, N candidates, K slots, the null slot before
them, H heads, d width, C code words, D levels.
"""

from __future__ import annotations

import numpy as np

from hisac_rec.ops.compiled import Floats, Ints, compiled, compiled_in_any_order


@compiled
def similarities(
    first: int,
    last: int,
    products: Floats,
    words: Ints,
    scale: Floats,
    offsets: Ints,
    found: Floats,
) -> None:
    """Similarity of some requests' candidates and slots, 0 for the null slot. O(n K D).

    Args:
        first: of the requests.
        last: one after the last.
        products: [N, C] each candidate's vector times each code word.
        words: [R, K, D] code words of each slot.
        scale: [R, K] of each slot.
        offsets: [R+1] over N.
        found: [N, 1+K] written.
    """
    for request in range(first, last):
        of_slots, by = words[request], scale[request]
        for candidate in range(offsets[request], offsets[request + 1]):
            row, near = products[candidate], found[candidate]
            near[0] = 0
            for slot in range(len(by)):
                near[slot + 1] = row[of_slots[slot, 0]]
                for level in range(1, of_slots.shape[1]):
                    near[slot + 1] += row[of_slots[slot, level]]
                near[slot + 1] *= by[slot]


@compiled
def _lay_columns(null: Floats, rows: Floats, filled: int, columns: Floats) -> None:
    """Write [d, 1+K] columns of the null slot and of the first ``filled`` of [K, d] rows."""
    columns[:, 0] = null
    for slot in range(filled):
        for column in range(len(null)):
            columns[column, slot + 1] = rows[slot, column]


@compiled
def _lay_rows(columns: Floats, filled: int, null: Floats, rows: Floats) -> None:
    """The inverse of :func:`_lay_columns`; zeros after ``filled``."""
    null[:] = columns[:, 0]
    for slot in range(filled):
        for column in range(len(null)):
            rows[slot, column] = columns[column, slot + 1]
    rows[filled:] = 0


@compiled_in_any_order
def score(
    first: int,
    last: int,
    queries: Floats,
    null: Floats,
    keys: Floats,
    bias: Floats,
    gain: Floats,
    similarity: Floats,
    offsets: Ints,
    filled: Ints,
    found: Floats,
) -> None:
    """Scores of some requests' candidates before the softmax. O((n + r) K d).

    Args:
        first: of the requests.
        last: one after the last.
        queries: [N, d].
        null: [d] key of the null slot, whose bias is 0.
        keys: [R, K, d].
        bias: [R, K], -inf where unfilled.
        gain: [H] of the similarities.
        similarity: [N, 1+K], or without rows where there is none.
        offsets: [R+1] over N.
        filled: [R] slots of each request after which none is filled.
        found: [N, H, 1+K] written.
    """
    heads, slots = found.shape[1], found.shape[2]
    width = queries.shape[1] // heads
    scale = queries.dtype.type(1 / np.sqrt(width))
    columns = np.empty((queries.shape[1], slots), queries.dtype)
    for request in range(first, last):
        used = filled[request] + 1
        _lay_columns(null, keys[request], used - 1, columns)
        for candidate in range(offsets[request], offsets[request + 1]):
            for head in range(heads):
                row = found[candidate, head]
                row[0] = 0
                row[1:used] = bias[request, : used - 1]
                row[used:] = -np.inf
                if len(similarity):
                    near = similarity[candidate]
                    for slot in range(used):
                        row[slot] += gain[head] * near[slot]
                for column in range(head * width, (head + 1) * width):
                    query, key = queries[candidate, column] * scale, columns[column]
                    for slot in range(used):
                        row[slot] += query * key[slot]


@compiled_in_any_order
def attend(
    first: int,
    last: int,
    weights: Floats,
    null: Floats,
    values: Floats,
    offsets: Ints,
    filled: Ints,
    found: Floats,
) -> None:
    """Weighted sums of values for some requests' candidates. O((n + r) K d).

    Args:
        first: of the requests.
        last: one after the last.
        weights: [N, H, 1+K].
        null: [d] value of the null slot.
        values: [R, K, d].
        offsets: as in :func:`score`.
        filled: as there.
        found: [N, d] written.
    """
    heads = weights.shape[1]
    width = found.shape[1] // heads
    columns = np.empty((found.shape[1], weights.shape[2]), found.dtype)
    for request in range(first, last):
        used = filled[request] + 1
        _lay_columns(null, values[request], used - 1, columns)
        for candidate in range(offsets[request], offsets[request + 1]):
            for column in range(heads * width):
                weight, value = weights[candidate, column // width], columns[column]
                total = weight[0] * value[0]
                for slot in range(1, used):
                    total += weight[slot] * value[slot]
                found[candidate, column] = total


@compiled_in_any_order
def attend_backward(
    first: int,
    last: int,
    gradient: Floats,
    queries: Floats,
    null_key: Floats,
    keys: Floats,
    null_value: Floats,
    values: Floats,
    weights: Floats,
    similarity: Floats,
    offsets: Ints,
    filled: Ints,
    of_queries: Floats,
    of_null_key: Floats,
    of_keys: Floats,
    of_null_value: Floats,
    of_values: Floats,
    of_bias: Floats,
    of_gain: Floats,
) -> None:
    """Gradients of scores, softmax and sums together, of some requests. O((n + r) K d).

    Args:
        first: of the requests.
        last: one after the last.
        gradient: [N, d] of what :func:`attend` found.
        queries: as in :func:`score`.
        null_key: ``null`` there.
        keys: as there.
        null_value: ``null`` of :func:`attend`.
        values: as there.
        weights: [N, H, 1+K] of the forward pass.
        similarity: as in :func:`score`.
        offsets: as there.
        filled: as there.
        of_queries: [N, d] written.
        of_null_key: [R, d] written, as each request would have it.
        of_keys: [R, K, d] written.
        of_null_value: [R, d] written, as each request would have it.
        of_values: [R, K, d] written.
        of_bias: [R, K] written.
        of_gain: [R, H] written, as each request would have it.
    """
    heads, slots = weights.shape[1], weights.shape[2]
    width = queries.shape[1] // heads
    scale = queries.dtype.type(1 / np.sqrt(width))
    key_columns, value_columns, of_key_columns, of_value_columns = np.empty(
        (4, heads * width, slots), queries.dtype
    )
    of_scores = np.empty(slots, queries.dtype)
    for request in range(first, last):
        used = filled[request] + 1
        _lay_columns(null_key, keys[request], used - 1, key_columns)
        _lay_columns(null_value, values[request], used - 1, value_columns)
        of_key_columns[:] = 0
        of_value_columns[:] = 0
        of_bias[request] = 0
        of_gain[request] = 0
        for candidate in range(offsets[request], offsets[request + 1]):
            for head in range(heads):
                weight = weights[candidate, head]
                of_scores[:used] = 0
                for column in range(head * width, (head + 1) * width):
                    given = gradient[candidate, column]
                    value, of_value = value_columns[column], of_value_columns[column]
                    for slot in range(used):
                        of_scores[slot] += given * value[slot]
                        of_value[slot] += given * weight[slot]
                mean = weight[0] * of_scores[0]
                for slot in range(1, used):
                    mean += weight[slot] * of_scores[slot]
                for slot in range(used):
                    of_scores[slot] = weight[slot] * (of_scores[slot] - mean)
                for slot in range(1, used):
                    of_bias[request, slot - 1] += of_scores[slot]
                if len(similarity):
                    near = similarity[candidate]
                    for slot in range(used):
                        of_gain[request, head] += of_scores[slot] * near[slot]
                for column in range(head * width, (head + 1) * width):
                    query = queries[candidate, column] * scale
                    key, of_key = key_columns[column], of_key_columns[column]
                    total = of_scores[0] * key[0]
                    of_key[0] += query * of_scores[0]
                    for slot in range(1, used):
                        total += of_scores[slot] * key[slot]
                        of_key[slot] += query * of_scores[slot]
                    of_queries[candidate, column] = total * scale
        _lay_rows(of_key_columns, used - 1, of_null_key[request], of_keys[request])
        _lay_rows(of_value_columns, used - 1, of_null_value[request], of_values[request])
