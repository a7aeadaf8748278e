"""From raw events to jagged request batches: definitions, preparation, contract, loader."""
