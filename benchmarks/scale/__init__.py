"""Event logs of any size, and commands under a limit of memory and cores."""
