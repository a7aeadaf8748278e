"""Triton kernels of soft routing: distance, softmax and weighted sum in one pass.

Legend: R requests, K slots, T rows, S semantic width, D value width. ``begins`` [R+1] are the
offsets of the rows. BLOCK_x are tiles of K, rows, S and D: powers of two, at least 16.
"""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def distances(query, key, scale, SQUARED: tl.constexpr, PRECISION: tl.constexpr):
    """[BLOCK_K, BLOCK_N] float32 distance over tau of each query [., S] and key [., S]."""
    query_norm = tl.sum(query.to(tl.float32) * query.to(tl.float32), 1)
    key_norm = tl.sum(key.to(tl.float32) * key.to(tl.float32), 1)
    products = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    found = tl.maximum(query_norm[:, None] + key_norm[None, :] - 2.0 * products, 0.0)
    if not SQUARED:
        found = tl.sqrt(found)
    return found * scale


@triton.jit
def tile(start, rows, row_live, width, column):
    """[rows, column] of a matrix with rows of ``width``, zeros outside."""
    at = start + rows[:, None] * width + column[None, :]
    return tl.load(at, mask=row_live[:, None] & (column < width)[None, :], other=0.0)


@triton.jit
def forward_kernel(
    values,  # [T, D]
    queries,  # [R, K, S]
    keys,  # [T, S]
    counts,  # [T], read where COUNTED
    begins,  # [R+1]
    vectors,  # [R, K, D] out
    mass,  # [R, K] out
    highest,  # [R, K] out
    slots,
    width,
    dim,
    scale,
    COUNTED: tl.constexpr,
    SQUARED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_K agents of one request read all its rows, softmax on the way."""
    request = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    semantic, column = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    slot_live = slot < slots
    agent = request * slots + slot
    begin, end = tl.load(begins + request), tl.load(begins + request + 1)
    query = tile(queries, agent, slot_live, width, semantic)
    best = tl.full([BLOCK_K], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_K], tl.float32)
    sums = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for first in range(begin, end, BLOCK_N):
        row = first + tl.arange(0, BLOCK_N)
        live = row < end
        key = tile(keys, row, live, width, semantic)
        score = -distances(query, key, scale, SQUARED, PRECISION)
        score = tl.where(live[None, :], score, float("-inf"))
        now = tl.maximum(best, tl.max(score, 1))
        fade = tl.exp(best - now)
        weight = tl.exp(score - now[:, None])
        each = weight
        if COUNTED:
            count = tl.load(counts + row, mask=live, other=0)
            each = weight * count.to(tl.float32)[None, :]
        total = total * fade + tl.sum(each, 1)
        value = tile(values, row, live, dim, column)
        sums = sums * fade[:, None]
        sums += tl.dot(weight.to(value.dtype), value, input_precision=PRECISION)
        best = now
    mean = sums / tl.where(total > 0.0, total, 1.0)[:, None]
    at = vectors + agent[:, None] * dim + column[None, :]
    keep = slot_live[:, None] & (column < dim)[None, :]
    tl.store(at, mean.to(vectors.dtype.element_ty), mask=keep)
    tl.store(mass + agent, total.to(mass.dtype.element_ty), mask=slot_live)
    tl.store(highest + agent, best.to(highest.dtype.element_ty), mask=slot_live)


@triton.jit
def backward_kernel(
    scaled,  # [R, K, D]
    queries,  # [R, K, S]
    keys,  # [T, S]
    highest,  # [R, K]
    begins,  # [R+1]
    tiles,  # [R+1] tiles of BLOCK_N rows before each request
    result,  # [T, D] out
    requests,
    slots,
    width,
    dim,
    scale,
    HALVINGS: tl.constexpr,
    SQUARED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_N rows of one request collect from all its agents; writes once."""
    number = tl.program_id(0).to(tl.int64)
    # The last request whose tiles begin at or before this one. The grid is an upper bound, so
    # that nobody waits for the device to count tiles: superfluous programs find no live row.
    request = number * 0
    above = request + requests
    for _ in range(HALVINGS):
        middle = (request + above) // 2
        before = tl.load(tiles + middle) <= number
        request, above = tl.where(before, middle, request), tl.where(before, above, middle)
    first = tl.load(begins + request) + (number - tl.load(tiles + request)) * BLOCK_N
    row = first + tl.arange(0, BLOCK_N)
    live = row < tl.load(begins + request + 1)
    semantic, column = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    key = tile(keys, row, live, width, semantic)
    found = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(0, slots, BLOCK_K):
        slot = start + tl.arange(0, BLOCK_K)
        slot_live = slot < slots
        agent = request * slots + slot
        query = tile(queries, agent, slot_live, width, semantic)
        score = -distances(query, key, scale, SQUARED, PRECISION)
        top = tl.load(highest + agent, mask=slot_live, other=0.0).to(tl.float32)
        weight = tl.exp(score - top[:, None])
        weight = tl.where(slot_live[:, None] & live[None, :], weight, 0.0)
        gradient = tile(scaled, agent, slot_live, dim, column)
        weight = tl.trans(weight).to(gradient.dtype)
        found += tl.dot(weight, gradient, input_precision=PRECISION)
    at = result + row[:, None] * dim + column[None, :]
    keep = live[:, None] & (column < dim)[None, :]
    tl.store(at, found.to(result.dtype.element_ty), mask=keep)
