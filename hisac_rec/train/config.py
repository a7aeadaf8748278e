"""``[train]`` of a model file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hisac_rec.config import Strict


class TrainConfig(Strict):
    """How the model is optimised. Defaults were chosen by measurement: docs/training.md."""

    epochs: int = Field(default=3, gt=0)
    """Passes over the training split."""
    max_candidates: int | None = Field(default=None, gt=0)
    """Stop after about so many training candidates (whole steps), also within a pass; unset:
    after all passes. The same number for every model is an equal budget of labels, and within
    the first pass a random sample of the split."""
    seed: int = 0
    """Seeds initial weights, shuffling and dropout."""
    dense_lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the dense parameters (Adam)."""
    sparse_lr: float = Field(default=0.2, gt=0)
    """Peak learning rate of the tables (row-wise Adagrad, fused into the backward pass)."""
    sparse_optimizer: Literal["rowwise_adagrad", "adagrad", "sgd"] = "rowwise_adagrad"
    """Fused optimiser of the tables; these three run on CPU and GPU."""
    sparse_caution: float = Field(default=0.3, ge=0)
    """How slowly a row that was met rarely moves: added to the root of the row's summed squared
    gradients, in units of the gradient of one candidate's loss. With 0 the first step of a row
    is as long as ``sparse_lr`` whatever it was met in, so that one meeting is learned by heart;
    with c a row moves by about 1 / (1 + c / g) of that for a gradient g."""
    unknown_rate: float = Field(default=1.0, ge=0)
    """Train the rows of unknown ids: where an id was met n times in training, its row is left
    out for the unknown id's with the probability unknown_rate / (unknown_rate + n). Rows that no
    step has touched read as the unknown id's from then on."""
    sparse_weight_decay: float = Field(default=0.0, ge=0)
    """L2 decay of table rows, applied when a row is touched."""
    dense_weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of the dense parameters (AdamW)."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps over which both rates rise linearly from zero; unset: 100, but no more than a tenth
    of the training, so that a short one reaches its peak rates as well."""
    decay: Literal["none", "linear", "cosine"] = "linear"
    """How both rates fall after the warm-up."""
    final_lr: float = Field(default=0.1, ge=0, le=1)
    """Share of the peak rates left at the end of the decay."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Gradient norm of the dense parameters is cut to this; 0 switches it off."""
    accumulate: int = Field(default=1, gt=0)
    """Batches to a step of the dense optimiser, their mean gradient: an effective batch that memory
    could not hold at once. Tables move at every batch. Steps are counted, logged and scheduled in
    batches all the same."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast of the dense part."""
    compile: bool = False
    """Compile the interaction and the over arch with ``torch.compile``: fewer kernels a step on a
    GPU. The first steps wait for the compiler; a CPU needs a C++ compiler on the machine."""
    communication: Literal["fp32", "fp16", "bf16"] = "fp32"
    """What looked-up rows and their gradients travel as between ranks. Half the bytes with 16
    bits; tables, sums and optimiser stay as they are. gloo knows no bf16 and sends fp16."""
    evaluations: int = Field(default=5, ge=1)
    """Evaluate on the validation split at so many equal parts of the training, however short, as
    well as after each epoch."""
    eval_every: int = Field(default=0, ge=0)
    """Evaluate every this many steps instead, and after each epoch; 0: as ``evaluations`` says."""
    early_stop: int = Field(default=2, ge=0)
    """Stop after this many evaluations without a better validation metric; 0: never."""
    metric: Literal["auc", "gauc", "logloss"] = "logloss"
    """The validation metric for early stop and for the best checkpoint."""
    log_every: int = Field(default=50, gt=0)
    """Steps between log lines."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Steps between checkpoints besides those after each evaluation; 0: none."""
    checkpoint_async: bool = True
    """Go on training while a checkpoint is written, from a copy of the state in main memory. Where
    there is no room for the copy, training waits."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Newest checkpoints kept, besides the best."""
    keep_best: int = Field(default=1, gt=0)
    """Checkpoints kept of the best evaluations."""
    timeout_minutes: float = Field(default=10.0, gt=0)
    """How long ranks wait for another one before all end, naming it; a tenth of it brings a
    warning. Must be longer than anything that a rank does while the others wait: reading a batch,
    putting together the metrics of a validation split."""

    @model_validator(mode="after")
    def _whole_groups(self) -> TrainConfig:
        for key in ("eval_every", "checkpoint_every"):
            if (every := getattr(self, key)) % self.accumulate:
                raise ValueError(
                    f"{key} = {every} is no multiple of accumulate = {self.accumulate}: weights "
                    "would be kept while gradients of earlier batches still wait"
                )
        return self

    def is_spent(self, candidates: int) -> bool:
        """Whether so many training candidates reach ``max_candidates``."""
        return self.max_candidates is not None and candidates >= self.max_candidates
