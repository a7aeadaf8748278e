"""Do the models get the same tables, ranker, batches, training and inputs?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hisac_rec.checkpoints.saving import flatten

SECTIONS = ("inputs", "tables", "ranker", "loader", "train")
"""Tables of a model file that should be equal for all models of a comparison."""


def budget_differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Keys outside ``[history]`` in which the models differ.

    Args:
        configs: name -> model file as a nested table.

    Returns:
        Key -> value as JSON -> names of the models that have it, the most common value first.
    """
    flat = {
        name: flatten({section: config[section] for section in SECTIONS})
        for name, config in configs.items()
    }
    found: dict[str, dict[str, list[str]]] = {}
    for key in sorted({key for table in flat.values() for key in table} - {"train.seed"}):
        values: dict[str, list[str]] = {}
        for name, table in flat.items():
            values.setdefault(json.dumps(table.get(key)), []).append(name)
        if len(values) > 1:
            found[key] = dict(sorted(values.items(), key=lambda pair: -len(pair[1])))
    return found


def budget_lines(differences: Mapping[str, Mapping[str, list[str]]]) -> list[str]:
    """One line a key: ``"inputs.history: [] (a, b); ["id"] (c)"``."""
    return [
        f"{key}: " + "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())
        for key, values in differences.items()
    ]
