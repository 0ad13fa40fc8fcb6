"""Facts as planning takes them: frozen, and free of where they were asked."""

from dataclasses import dataclass
from typing import Any, Literal

from shoal.plan.types import SourceObject
from shoal.spec.job import Format


@dataclass(frozen=True)
class ModelFacts:
    base: str
    """As the job names it, local folders from the root."""
    kind: Literal["hub", "folder", "object"]
    gguf: bool
    revision: str | None
    """Commit of a hub model."""
    digest: str
    tokenizer_digest: str
    architecture: str
    num_parameters: int
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    max_position_embeddings: int | None
    """None where the configuration names no limit."""
    tie_word_embeddings: bool
    num_experts: int
    """0 for a dense model."""
    quantised: str | None
    """How the stored weights are quantised already; None for full precision (GGUF is dequantised)."""
    chat_template: bool
    matrices: frozenset[str]
    """Dotted names of modules with a matrix for a weight; empty when the names are not known (GGUF)."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdapterFacts:
    location: str
    """Folder or s3:// prefix; a run id is resolved."""
    lora: dict[str, Any] | None
    """adapter_config.json; None for a full model."""


@dataclass(frozen=True)
class SourceFacts:
    """Objects that are read alike."""

    path: str
    """As the job names them."""
    objects: tuple[SourceObject, ...]
    format: Format
    columns: dict[str, str]
    weight: float
    rows: int
    exact: bool
    """Whether the rows were counted rather than guessed from sizes."""
    sample_tokens: tuple[int, ...]
    """Estimated tokens of each accepted row among the first ones."""


@dataclass(frozen=True)
class Counts:
    """What preparation counted of the samples to train on."""

    samples: int
    packed_rows: int
    tokens: int


@dataclass(frozen=True)
class DataFacts:
    train: tuple[SourceFacts, ...]
    validation: tuple[SourceFacts, ...]
    """Empty when validation is a share of train, or absent."""
    chat_template: str | None
    """The text of data.chat_template."""
    digest: str
    """Of everything that the prepared shards depend on."""
    counts: Counts | None
    """Exact, when these data were prepared before and every weight is 1."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    model: ModelFacts
    adapter: AdapterFacts | None
    data: DataFacts
