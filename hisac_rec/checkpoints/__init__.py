"""Checkpoints: written whole, read in any sharding, started from by other runs."""
