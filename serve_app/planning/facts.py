"""What the planner must know of a checkpoint: small enough to keep beside a config file."""

from dataclasses import dataclass
from enum import StrEnum

from serve_app.domain.quant import QuantScheme
from serve_app.planning.shape import ModelShape


class Source(StrEnum):
    """Where a number comes from, from the strongest to the weakest."""

    MEASURED = "measured"
    """A calibration run on this GPU type with this vLLM version."""
    HEADERS = "headers"
    """The checkpoint's own tensor headers."""
    CONFIG = "config"
    """Computed from `config.json` and the scheme: exact shapes, assumed storage."""
    ESTIMATED = "estimated"
    """A formula with a safety factor."""


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of the weights on the device after vLLM's post-processing, whole model, by kind."""

    linear_bytes: int
    """Weights of the linear layers, packed or plain."""
    scale_bytes: int
    """Scales, zero points, activation-order indices."""
    embedding_bytes: int
    head_bytes: int
    """The output head; 0 where it is the embedding's own matrix."""
    other_bytes: int
    """Norms, biases, routers, convolutions."""
    source: Source

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return (
            self.linear_bytes
            + self.scale_bytes
            + self.embedding_bytes
            + self.head_bytes
            + self.other_bytes
        )


@dataclass(frozen=True)
class CheckpointFacts:
    """Shape, scheme and weight bytes of one checkpoint."""

    uri: str
    shape: ModelShape
    scheme: QuantScheme
    weights: WeightBytes
