"""SqueezeLLM in vLLM: a quantization of our own, offered to it by our plugin.

vLLM 0.32 has none. Importing this costs what every engine imports anyway; the layers' code is
loaded when a checkpoint asks for it (`vllm_squeezellm_layer`).

Setting, in a variant's `engine_args`:

    additional_config: {squeezellm: {dequantize_once: true}}

makes 16-bit weights at load, so that memory is that of bf16 and speed too. Without it each layer's
weights are looked up anew in each forward pass.
"""

from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.quantization import (
    _CUSTOMIZED_METHOD_TO_QUANT_CONFIG,
    register_quantization_config,
)
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)

from serve_app.domain.errors import CheckpointError
from serve_app.engines.vllm_squeezellm_weights import require_format

if TYPE_CHECKING:
    from vllm.model_executor.models.utils import WeightsMapper

NAME = "squeezellm"


class SqueezeLLMConfig(QuantizationConfig):  # type: ignore[misc]
    """What a checkpoint's `quantization_config` says. `ignore`: modules that are not quantized."""

    def __init__(self, bits: int, outliers: bool, ignore: list[str]) -> None:
        super().__init__()
        self.bits = bits
        self.outliers = outliers
        self.ignore = ignore

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SqueezeLLMConfig":
        """From config.json. Raises `CheckpointError` for a layout that this cannot read."""
        bits, outliers = require_format(config, "the checkpoint")
        return cls(bits, outliers, list(config.get("ignore") or ()))

    def get_name(self) -> str:
        """`quant_method` in config.json."""
        return NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """The tables are read two 16-bit values at a time."""
        return [torch.float16, torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        """That of vLLM's own builds: all of it is plain torch."""
        return 75

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: it is in config.json."""
        return []

    def apply_vllm_mapper(self, hf_to_vllm_mapper: "WeightsMapper") -> None:
        """Rename the ignored modules as vLLM renames them."""
        self.ignore = hf_to_vllm_mapper.apply_list(self.ignore)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Our method for linear layers, vLLM's own for what the checkpoint left alone."""
        from vllm.model_executor.layers.fused_moe import RoutedExperts
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
        from vllm.model_executor.layers.quantization.utils.quant_utils import is_layer_skipped

        from serve_app.engines.vllm_squeezellm_layer import SqueezeLLMLinearMethod

        if isinstance(layer, RoutedExperts):
            raise CheckpointError(
                f"{prefix} is a mixture of experts, which SqueezeLLM weights do not cover: take a "
                "GPTQ or AWQ variant"
            )
        if not isinstance(layer, LinearBase):
            return None
        if is_layer_skipped(prefix, self.ignore, self.packed_modules_mapping):
            return UnquantizedLinearMethod()
        return SqueezeLLMLinearMethod(self.bits, self.outliers)


def offer() -> None:
    """Tell vLLM of the method; may be repeated."""
    if _CUSTOMIZED_METHOD_TO_QUANT_CONFIG.get(NAME) is not SqueezeLLMConfig:
        register_quantization_config(NAME)(SqueezeLLMConfig)
