"""What a checkpoint on disk really is, and what an application serves of it."""

from dataclasses import dataclass, field

from serve_app.domain.errors import CheckpointError
from serve_app.domain.quant import QuantMethod, QuantScheme, stored_alike


@dataclass(frozen=True)
class Checkpoint:
    """Immutable weights: where they are, how many bytes, and how they are stored.

    `weight_bytes` is the sum of the tensors' bytes from the safetensors headers: what the engine
    loads, not the size of the files. `recorded` says that `scheme.method` was read from a record of
    how the checkpoint was made (`quantile.json`) or is plain from its container; where it is False
    the container only tells the bits (compressed-tensors does not record GPTQ from AWQ).
    """

    uri: str
    weight_bytes: int
    scheme: QuantScheme
    weight_dtype: str
    context_length: int
    recorded: bool = True

    def describe(self) -> str:
        """`gptq W4A16 g128 (compressed-tensors)`, or `unquantized bfloat16`."""
        if self.scheme.method is QuantMethod.UNQUANTIZED:
            return f"unquantized {self.weight_dtype}"
        return f"{self.scheme.describe()} ({self.scheme.container})"

    def require_method(self, declared: QuantMethod) -> None:
        """Raise CheckpointError unless the checkpoint can be what it is declared to be."""
        found = self.scheme.method
        if declared is found:
            return
        if not self.recorded and stored_alike(declared, found):
            return
        raise CheckpointError(
            f"declares {declared}, but the checkpoint is {self.describe()}: {self.uri}. "
            f"Declare `method: {found}`, or point `checkpoint` at a {declared} checkpoint"
        )


@dataclass(frozen=True)
class VariantCard:
    """What a running variant says of itself; `/v1/models` is made of these."""

    name: str
    method: str
    scheme: str
    bits: int
    weight_bytes: int
    context_length: int
    engine: str
    facts: dict[str, str] = field(default_factory=dict)
    """What a measurement has to say of the engine: `serve_app.engines.engine.Engine.facts`."""
