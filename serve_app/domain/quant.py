"""How a checkpoint's weights are stored: the quantization method and its parameters."""

from dataclasses import dataclass
from enum import StrEnum


class QuantMethod(StrEnum):
    """The method that made the weights, by the field's name for it."""

    UNQUANTIZED = "unquantized"
    INT8_W8A8 = "int8_w8a8"
    GPTQ = "gptq"
    AWQ = "awq"
    RTN = "rtn"
    """Round to nearest: integer weights without calibration, INT8 weight-only among them."""
    FP8 = "fp8"
    GGUF = "gguf"
    SQUEEZELLM = "squeezellm"
    MIXED = "mixed"


def stored_alike(one: QuantMethod, other: QuantMethod) -> bool:
    """Whether compressed-tensors stores both alike, so that only a record tells which it was."""
    return {one, other} <= {QuantMethod.GPTQ, QuantMethod.AWQ, QuantMethod.RTN}


NOMINAL_BITS = {
    QuantMethod.UNQUANTIZED: 16,
    QuantMethod.INT8_W8A8: 8,
    QuantMethod.GPTQ: 4,
    QuantMethod.AWQ: 4,
    QuantMethod.RTN: 4,
    QuantMethod.FP8: 8,
    QuantMethod.GGUF: 4,
    QuantMethod.SQUEEZELLM: 4,
    QuantMethod.MIXED: 8,
}
"""Bits per weight that a method's name stands for, where there is no checkpoint to ask."""


@dataclass(frozen=True)
class QuantScheme:
    """Storage format of the linear layers' weights.

    `bits` is bits per weight in the quantized linears (embeddings, head and norms stay in
    `activation_bits` precision unless the method says otherwise). `group_size` is the number
    of input channels that share a scale: None for one scale per output channel. `container` is the
    checkpoint format that the engine sees (`plain`, `compressed-tensors`, `gptq`, `awq`, ...).
    """

    method: QuantMethod
    bits: int
    activation_bits: int = 16
    group_size: int | None = None
    symmetric: bool = True
    container: str = "plain"

    def describe(self) -> str:
        """`gptq W4A16 g128`: what a table has room for."""
        text = f"{self.method} W{self.bits}A{self.activation_bits}"
        if self.group_size:
            text += f" g{self.group_size}"
        return text if self.symmetric else text + " asym"
