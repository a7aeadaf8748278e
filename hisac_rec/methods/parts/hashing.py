"""Sign hashes of embeddings (SimHash: Charikar, STOC 2002).

A bit is the side of a random hyperplane on which a vector lies; two vectors agree on a bit
with probability 1 - angle / pi. Hashes have no gradient. Legend: T rows, d width, m groups.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hyperplanes(dim: int, bits: int, seed: int) -> Tensor:
    """[d, bits] float32 normals of random hyperplanes, the same for the same arguments.

    They are drawn on the CPU from a generator of their own: neither the device nor the
    model's initialisation changes them.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(dim, bits, generator=generator, device="cpu")


@torch.no_grad()
def sign_bits(rows: Tensor, planes: Tensor) -> Tensor:
    """[T, bits] bool: which side of each plane a row is on. O(T d bits).

    Args:
        rows: [T, d].
        planes: [d, bits] of :func:`hyperplanes`.
    """
    # bf16 would flip bits of rows near a plane, so autocast stops here.
    with torch.autocast(rows.device.type, enabled=False):
        return rows.detach().to(planes.dtype) @ planes > 0


def bit_groups(bits: Tensor, groups: int) -> Tensor:
    """[T, m] int64: consecutive bits joined to numbers, the first bit the highest. O(T bits).

    Args:
        bits: [T, m * tau] bool.
        groups: m.
    """
    parts = bits.unflatten(1, (groups, -1))
    numbers = parts.new_zeros(parts.shape[:2], dtype=torch.int64)
    for place in range(parts.shape[2]):
        numbers = 2 * numbers + parts[:, :, place]
    return numbers
