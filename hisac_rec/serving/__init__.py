"""From a checkpoint to scores: histories compressed once, kept, and read by many candidates."""
