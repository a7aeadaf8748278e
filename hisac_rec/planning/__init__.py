"""Sharding-planner configs and plans: which rank owns which rows of which table."""
