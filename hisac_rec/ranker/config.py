"""Typed model files: one TOML describes one model completely."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hisac_rec.config import Strict, apply_overrides, read_toml, validate
from hisac_rec.data.inputs import InputConfig
from hisac_rec.data.loader import LoaderConfig
from hisac_rec.data.tasks import TaskConfig
from hisac_rec.data.vocabulary import VocabularyConfig
from hisac_rec.errors import UserError
from hisac_rec.methods.base import find_method
from hisac_rec.train.config import TrainConfig


class TableConfig(Strict):
    """``[tables]`` of a model file: the sharded embedding tables."""

    dim: int = Field(default=32, gt=0)
    """Width of every trained row."""
    init_scale: float = Field(default=0.05, gt=0)
    """Rows start uniform in [-init_scale, init_scale]."""
    dtype: Literal["fp32", "fp16"] = "fp32"
    """Storage of the trained tables; gradients and optimiser state stay fp32."""
    pool: bool | None = None
    """Sum the events of each of the method's groups (HiSAC: of each leaf of a request) on the rank
    that owns their rows, so that sums cross the network instead of rows. The same numbers but for
    the order of additions; for methods that read nothing else of their events. Left out: where the
    rows of the first training batch would be twice the bytes of the sums, or more."""
    pool_min_rows: int = Field(default=10_000, gt=0)
    """Tables of fewer rows stay out of ``pool``: a batch cannot ask for more rows than there are,
    and it asks for each once."""
    vocabulary: dict[str, VocabularyConfig] = {}
    """Table -> which rows its ids read; tables that are not named have a row for each id."""


class RankerConfig(Strict):
    """``[ranker]`` of a model file: the DLRM-style network around the history method."""

    dense_layers: list[int] = [32]
    """Hidden layers of the DenseArch over context features; its output has tables.dim."""
    over_layers: list[int] = [128, 64]
    """Hidden layers of the OverArch, of each task's where there are several; a final layer to one
    logit follows."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout before every OverArch layer."""
    include_vectors: bool = True
    """Feed the feature vectors themselves to the OverArch, beside their dot products."""
    recent: int = Field(default=20, ge=0)
    """Length of the short sequence, mean-pooled beside the long history; 0 switches it off.
    Methods without history get none."""
    age_buckets: int = Field(default=24, ge=0)
    """Time decay: event age, in logarithmic buckets, as a trained vector added to the event;
    0 switches it off."""


class ModelConfig(Strict):
    """A whole model file (``models/*.toml``)."""

    name: str
    """Name in tables and logs."""
    description: str = ""
    """One line for people."""
    inputs: InputConfig = InputConfig()
    tables: TableConfig = TableConfig()
    history: dict[str, Any] = {"method": "hisac"}
    """``method`` and the keys of that method's own ``Config``."""
    ranker: RankerConfig = RankerConfig()
    tasks: TaskConfig = TaskConfig()
    loader: LoaderConfig = LoaderConfig()
    train: TrainConfig = TrainConfig()

    @property
    def method(self) -> str:
        """Name or dotted path of the history method."""
        return str(self.history["method"])

    def method_config(self, source: str = "history") -> Strict:
        """The validated ``[history]`` keys of the method."""
        keys = {key: value for key, value in self.history.items() if key != "method"}
        return validate(find_method(self.method).Config, keys, source=source)


def load_model_config(path: Path, overrides: list[str] | None = None) -> ModelConfig:
    """Read a model file and resolve every default, the history method's included.

    Args:
        path: the TOML file.
        overrides: ``key.path=value`` strings.

    Raises:
        UserError: naming file, key, value and what is allowed.
    """
    return resolve_model_config(apply_overrides(read_toml(path), overrides or []), str(path))


def resolve_model_config(raw: Mapping[str, Any], source: str) -> ModelConfig:
    """Validate the contents of a model file; ``source`` is how messages name it.

    Raises:
        UserError: see :func:`load_model_config`.
    """
    config = validate(ModelConfig, raw, source)
    if "method" not in config.history:
        raise UserError(f"{source}: key 'history.method' is required")
    own = config.method_config(source=f"{source}: [history]")
    keys = own.model_dump(mode="json", exclude_none=True)  # TOML has no word for unset
    return config.model_copy(update={"history": {"method": config.method, **keys}})
