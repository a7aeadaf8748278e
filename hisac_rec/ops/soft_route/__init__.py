"""Soft-routing attention as one operator (docs/method.md).

- ``op``: the operator, its gradient, and which backend runs it
- ``padded``: plain torch over padded blocks, any device, any routing
- ``stream``, ``block``, ``stream_cpu``: CPU, long histories, request by request through a buffer
  that stays in the cache
- ``triton_kernels``, ``fused``: CUDA, one pass, nothing of size rows x agents in memory
"""

from hisac_rec.ops.soft_route.op import route_with_mass, soft_route
from hisac_rec.ops.soft_route.problem import Frozen, Routing

__all__ = ["Frozen", "Routing", "route_with_mass", "soft_route"]
