"""From an event log, by a definition, to prepared data: SQL, cutting, negatives, resuming."""
