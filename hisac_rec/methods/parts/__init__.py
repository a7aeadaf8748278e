"""Building blocks that several history methods share."""
