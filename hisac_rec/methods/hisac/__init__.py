"""HiSAC: Hierarchical Sparse Activation Compression (arXiv 2602.21009)."""

from hisac_rec.methods.hisac.method import HiSAC as Method

__all__ = ["Method"]
