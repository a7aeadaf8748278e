"""Semantic IDs: quantise item content into a global hierarchical codebook."""
