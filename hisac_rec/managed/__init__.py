"""Managed vocabularies: TorchRec's managed collision (zero-collision) tables under this trainer."""
