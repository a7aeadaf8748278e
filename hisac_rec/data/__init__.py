"""Prepared data to jagged request batches: the contract, what is looked up, the loader."""
