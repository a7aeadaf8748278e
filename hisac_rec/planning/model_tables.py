"""The embedding tables of a model, as the planner and a saved plan see them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection

from hisac_rec.errors import UserError
from hisac_rec.planning.state import fused_optimizer

COLLECTIONS = (
    EmbeddingCollection,
    EmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
"""The modules whose tables are sharded."""


@dataclass(frozen=True)
class ModelTable:
    """One embedding table of a model."""

    path: str
    """Name of the module that holds it, from the model's root ("" for the root itself)."""
    name: str
    rows: int
    dim: int
    dtype: str
    """Such as "float32"."""
    features: tuple[str, ...]
    """The keys that look it up."""
    module: nn.Module
    """The collection that holds it; of a managed table, the one with its mapping."""
    optimizer: type[Optimizer] | None
    """Its fused optimiser; None: it is frozen."""

    @property
    def managed(self) -> bool:
        """Whether a managed collision module gives out its rows."""
        return isinstance(self.module, ManagedCollisionEmbeddingCollection)

    @property
    def shape(self) -> str:
        """Rows, columns and type, for messages: ``1,000 x 64 float32``."""
        return describe_shape(self.rows, self.dim, self.dtype)


def describe_shape(rows: int, dim: int, dtype: str) -> str:
    """``1,000 x 64 float32``."""
    return f"{rows:,} x {dim} {dtype}"


def model_tables(model: nn.Module) -> list[ModelTable]:
    """List the tables of every embedding collection in ``model``, in module order.

    Weights may be on any device, the meta device included. Cost O(modules + tables).

    Raises:
        UserError: two collections hold a table of the same name; TorchRec's constraints
            are keyed by that name alone.
    """
    tables: list[ModelTable] = []
    inner: set[nn.Module] = set()
    for path, module in model.named_modules():
        if not isinstance(module, COLLECTIONS) or module in inner:
            continue
        if isinstance(module, EmbeddingBagCollection):
            configs, weights = list(module.embedding_bag_configs()), module.embedding_bags
        else:
            rows = module
            if isinstance(module, ManagedCollisionEmbeddingCollection):
                rows = module._embedding_collection
                inner.add(rows)
            configs, weights = list(rows.embedding_configs()), rows.embeddings
        for config in configs:
            weight = weights[config.name].weight
            dtype = str(weight.dtype).removeprefix("torch.")
            tables.append(
                ModelTable(
                    path=path,
                    name=config.name,
                    rows=config.num_embeddings,
                    dim=config.embedding_dim,
                    dtype=dtype,
                    features=tuple(config.feature_names),
                    module=module,
                    optimizer=fused_optimizer(weight),
                )
            )
    _refuse_namesakes(tables)
    return tables


def tables_digest(tables: Iterable[ModelTable]) -> str:
    """Hex digest over path, name, shape, type and features: equal means interchangeable."""
    lines = sorted(
        f"{table.path}|{table.name}|{table.rows}|{table.dim}|{table.dtype}|"
        f"{','.join(table.features)}"
        for table in tables
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _refuse_namesakes(tables: list[ModelTable]) -> None:
    seen: dict[str, ModelTable] = {}
    for table in tables:
        twin = seen.setdefault(table.name, table)
        if twin is not table:
            raise UserError(
                f"the model has two tables named '{table.name}', in '{twin.path}' and in "
                f"'{table.path}'; rename one, the planner tells tables apart by name"
            )
