"""Studies and measurements behind the pages of docs/results; run from the repository's root."""
