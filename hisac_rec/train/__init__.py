"""Training: distributed set-up, optimisers, the loop, checkpoints."""
