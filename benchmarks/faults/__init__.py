"""Twenty random kills, and what the model has learned after them: docs/results/faults.md."""
