"""What a checkpoint on disk really is, and what an application serves of it."""

from dataclasses import dataclass, field

from serve_app.domain.errors import CheckpointError
from serve_app.domain.quant import QuantMethod, QuantScheme, stored_alike


@dataclass(frozen=True)
class Original:
    """The variant that a dense twin stands for: how it is stored, and its weights' bytes.

    `weight_bytes` is None where its record does not have them.
    """

    scheme: QuantScheme
    weight_bytes: int | None


@dataclass(frozen=True)
class Checkpoint:
    """Immutable weights: where they are, how many bytes, and how they are stored.

    `weight_bytes` is the sum of the tensors' bytes from the safetensors headers: what the engine
    loads, not the size of the files. `recorded` says that `scheme.method` was read from a record of
    how the checkpoint was made (`quantile.json`) or is plain from its container; where it is False
    the container only tells the bits (compressed-tensors does not record GPTQ from AWQ).
    `twin_of`: it is a dense twin (`serve_app.quantize.twin`): the engine loads these weights, and
    what is told of bits and bytes is the original's.
    """

    uri: str
    weight_bytes: int
    scheme: QuantScheme
    weight_dtype: str
    context_length: int
    recorded: bool = True
    twin_of: Original | None = None

    @property
    def told_scheme(self) -> str:
        """`gptq W3A16 g32 (dense twin)`, or the scheme itself."""
        if self.twin_of is not None:
            return f"{self.twin_of.scheme.describe()} (dense twin)"
        return self.scheme.describe()

    @property
    def told_bits(self) -> int:
        """Bits per weight of the variant that is judged."""
        return self.twin_of.scheme.bits if self.twin_of is not None else self.scheme.bits

    @property
    def told_bytes(self) -> int | None:
        """Bytes of the variant that is judged; None where a twin's record lacks them."""
        return self.twin_of.weight_bytes if self.twin_of is not None else self.weight_bytes

    def describe(self) -> str:
        """`gptq W4A16 g128 (compressed-tensors)`, `unquantized bfloat16`, or what a twin is of."""
        if self.twin_of is not None:
            return f"dense {self.weight_dtype} twin of {self.twin_of.scheme.describe()}"
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
    weight_bytes: int | None
    context_length: int
    engine: str
    facts: dict[str, str] = field(default_factory=dict)
    """What a measurement has to say of the engine: `serve_app.engines.engine.Engine.facts`."""
