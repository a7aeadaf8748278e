"""What a semantic ID is made from and how: table ``[semantic_ids]`` of a definition."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hisac_rec.config import Strict

Source = Literal[
    "auto", "content", "text", "collaborative", "text+collaborative", "content+collaborative"
]
CodeCount = Annotated[int, Field(ge=2, le=65536)]


class TextConfig(Strict):
    """Text to vectors: without a download by TF-IDF and a truncated SVD (LSA), or by a model."""

    model: str | None = None
    """A sentence-transformers model: a folder, or a name on the Hugging Face hub. Needs the extra
    "text". Unset: TF-IDF, which the keys from ``max_terms`` on are about."""
    prompt: str = ""
    """Put before every text; some models want one ("passage: ")."""
    batch_size: int = Field(default=64, ge=1)
    """Texts that the model reads at once."""
    max_terms: int = Field(default=50_000, ge=16)
    """Vocabulary size: the most frequent terms."""
    min_items: int = Field(default=2, ge=1)
    """A term must occur in this many items."""
    max_share: float = Field(default=0.3, gt=0.0, le=1.0)
    """A term in more than this share of the items says nothing and is left out (this stands
    in for stop words, in any language)."""
    ngrams: int = Field(default=1, ge=1, le=3)
    """Terms are runs of up to this many words."""


class CollaborativeConfig(Strict):
    """User x item matrix of the training period to vectors, by a truncated SVD."""

    max_users: int = Field(default=1_000_000, ge=1)
    """At most this many training users are used (a seeded sample): memory is about 12 bytes
    per (user, item) pair."""
    views: int = Field(default=4, ge=1, le=64)
    """Groups of users that are held out in turn: what a user's rows read of an item was fitted on
    the users of all other groups, so that it does not know their labels (hisac_rec.semantic.views).
    1 holds nobody out: codes know the training labels, and training metrics mean nothing."""
    min_support: int = Field(default=2, ge=1)
    """An item that fewer users consumed has no place by co-consumption."""
    shrinkage: float = Field(default=2.0, ge=0.0)
    """An item that n users consumed keeps n / (n + shrinkage) of its own vector; the rest is what
    its other source predicts, or the origin where there is none."""
    spectrum: float = Field(default=1.0, ge=0.0, le=2.0)
    """Power of the singular values: 0 whitens the factors, 1 keeps the matrix's own scale."""


class RqVaeConfig(Strict):
    """Residual-quantised variational auto-encoder (method = "rqvae")."""

    latent_dim: int = Field(default=32, ge=2, le=1024)
    """Width of the latent space, which is the space of the code words."""
    hidden: list[Annotated[int, Field(ge=2)]] = [256, 128]
    """Hidden layers of the encoder; the decoder mirrors them."""
    epochs: int = Field(default=100, ge=1)
    """Passes over the fitted items."""
    batch_size: int = Field(default=256, ge=2)
    """Items a step."""
    lr: float = Field(default=1e-3, gt=0.0)
    """Peak learning rate of AdamW; it falls to 0 along a cosine."""
    commitment: float = Field(default=0.25, ge=0.0)
    """Weight of the loss that pulls the encoder to the code words."""
    decay: float = Field(default=0.95, gt=0.0, lt=1.0)
    """A code word is the moving average, with this decay a step, of the residuals that chose
    it."""
    revive_until: float = Field(default=0.8, ge=0.0, le=1.0)
    """Until this share of the epochs, a code that no item of an epoch chose is moved onto a
    residual of the last batch; 0 never revives."""


class RefreshConfig(Strict):
    """How a refit goes on from an earlier one (``semantic-ids --from OLD --refit``)."""

    margin: float = Field(default=0.1, ge=0.0)
    """An item keeps as much of its old path as costs at most this share more of squared distance
    than the best path does; 0 keeps nothing for its own sake."""
    churn: float = Field(default=0.04, ge=0.0, le=1.0)
    """At most this share of the unchanged items leaves its path in one refit: those that gain most
    by it. 1 sets no bound."""


class SemanticIdConfig(Strict):
    """How items get their paths of codes."""

    source: Source = "auto"
    """Where the meaning of an item comes from: "content" = the embedding column of the items,
    "text" = their text, "collaborative" = who consumed them in the training split alone, or
    two of these side by side. "auto" takes content where there is any, else text, else
    collaborative."""
    embeddings: str | None = None
    """File of embeddings that source = "content" reads instead of the items' column: Parquet with a
    column of raw ids and one of lists, or ``x.npy`` beside ``x.ids.txt``; float or int8. "{raw}" is
    the folder given with ``semantic-ids --raw``."""
    dim: int | None = Field(default=None, ge=2, le=4096)
    """Width of the vectors. None: content and the vectors of a text model as they are; other text
    and collaborative 64 each. A wider embedding is reduced to it by a truncated SVD; for two
    sources it is the width of each."""
    normalise: bool = True
    """Scale every item's vector to length 1, so that distance means angle."""
    collaborative_weight: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Share of the squared distance that the collaborative half of two sources decides."""
    method: Literal["residual_kmeans", "rqvae"] = "residual_kmeans"
    """The quantiser: fast and stable, or the paper's."""
    codes: list[CodeCount] = Field(default=[32, 32], min_length=1, max_length=8)
    """Codes per level, top level first: C_1, ..., C_D."""
    seed: int = Field(default=0, ge=0)
    """Of everything random here."""
    iterations: int = Field(default=50, ge=1)
    """At most this many k-means passes per level; it stops when no item moves."""
    restarts: int = Field(default=5, ge=1)
    """Seedings of k-means tried per level; the best is kept."""
    fit_sample: int = Field(default=262_144, ge=2)
    """Fit the quantiser on at most this many items, drawn at random; all are encoded."""
    vector_dtype: Literal["float16", "float32"] = "float16"
    """How the items' semantic vectors are stored and looked up in training."""
    text: TextConfig = TextConfig()
    """Settings of the text source."""
    collaborative: CollaborativeConfig = CollaborativeConfig()
    """Settings of the collaborative source."""
    refresh: RefreshConfig = RefreshConfig()
    """Settings of a refit that goes on from an earlier one."""
    rqvae: RqVaeConfig = RqVaeConfig()
    """Settings of method = "rqvae"."""

    @property
    def views(self) -> int:
        """V: sets of codes, one for each group of users; 1 where codes come from no users."""
        return self.collaborative.views if "collaborative" in self.source else 1
