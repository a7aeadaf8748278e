"""Hyper-parameter search: the same budget and the same common keys for every model."""
