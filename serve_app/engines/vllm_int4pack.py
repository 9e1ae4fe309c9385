"""4-bit weights on x86 CPUs through PyTorch's own kernel, where vLLM 0.32 has only a slow one.

vLLM's CPU kernel for 4-bit weights and 16-bit activations has a fast branch for AMX; without it, it
takes longer than oneDNN does with bf16 weights. PyTorch's `_weight_int4pack_mm_for_cpu` is over
twice as fast at batch 1, and not slower at 8 and 32 (decision 0015). For bfloat16 only: with
float16 activations PyTorch has a plain loop, which takes minutes for a prompt.

Registered among vLLM's kernels in every process of an engine, before vLLM's own, which keeps what
this one cannot do. `VLLM_DISABLED_KERNELS=Int4PackLinearKernel` switches it off.
"""

import torch
from vllm.model_executor.kernels.linear import _POSSIBLE_KERNELS
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import (
    MPLinearKernel,
    MPLinearLayerConfig,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    unpack_quantized_values_into_int32,
)
from vllm.platforms import PlatformEnum, current_platform
from vllm.scalar_type import scalar_types

GROUP_SIZES = (256, 128, 64, 32)
"""What the kernel takes; one scale per channel is given as equal scales of such groups."""
ROWS = 16
"""Output channels come in blocks of this many."""
MIDDLE = 8
"""The kernel computes (q - 8) * scale + zero, with q from 0 to 15."""


class Int4PackLinearKernel(MPLinearKernel):  # type: ignore[misc]
    """W4A16, symmetric or not; bfloat16 activations, sums in float32."""

    @classmethod
    def get_min_capability(cls) -> int:
        """CPUs have none."""
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Whether this layer can be done here, else why not."""
        inputs, outputs = c.partition_weight_shape
        if torch.backends.cpu.get_cpu_capability() != "AVX512":
            return False, "Int4Pack was measured with AVX-512 only"
        if torch.cpu._is_amx_tile_supported():
            return False, "vLLM's own kernel uses AMX"
        if c.act_type != torch.bfloat16:
            return False, f"Int4Pack is fast with bfloat16 only, have {c.act_type}"
        if c.weight_type not in (scalar_types.uint4, scalar_types.uint4b8):
            return False, f"Int4Pack has no weights of {c.weight_type}"
        if outputs % ROWS or _group_size(c.group_size, inputs) is None:
            return False, (
                f"Int4Pack needs outputs in multiples of {ROWS} and groups of {GROUP_SIZES}, "
                f"have {outputs} and {c.group_size} of {inputs}"
            )
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Repack from GPTQ's order (eight inputs to an int32) into the kernel's."""
        packed, scales = getattr(layer, self.w_q_name), getattr(layer, self.w_s_name)
        inputs, _ = self.config.partition_weight_shape
        by_input = packed.data.t() if packed.input_dim == 1 else packed.data
        values = unpack_quantized_values_into_int32(by_input, self.config.weight_type, 0)
        scale = (scales.data.t() if scales.output_dim == 0 else scales.data).float()
        zero = torch.zeros_like(scale)
        if self.config.zero_points:
            assert self.w_zp_name
            points = getattr(layer, self.w_zp_name)
            by_group = points.data.t() if points.output_dim == 0 else points.data
            point = unpack_quantized_values_into_int32(
                by_group.contiguous(), self.config.weight_type, 1
            )
            zero = (MIDDLE - point) * scale
        group_size = _group_size(self.config.group_size, inputs)
        assert group_size
        repeats = inputs // group_size // scale.shape[0]
        both = torch.stack([scale, zero], dim=-1).repeat_interleave(repeats, dim=0)
        layer.int4pack_group_size = group_size
        packed.data = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values.t().contiguous(), 1)
        scales.data = both.to(self.config.act_type).contiguous()
        if self.w_zp_name is not None:  # it is in `scales` now
            setattr(layer, self.w_zp_name, None)

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x [..., inputs] -> [..., outputs]."""
        packed, scales_and_zeros, _ = self._get_weight_params(layer)
        rows = x.reshape(-1, x.shape[-1])
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, packed, layer.int4pack_group_size, scales_and_zeros
        )
        if bias is not None:
            out += bias
        return out.reshape(*x.shape[:-1], out.shape[-1])


def _group_size(declared: int, inputs: int) -> int | None:
    """The kernel's group size for the checkpoint's (-1: per channel), None if it has none."""
    sizes = GROUP_SIZES if declared == -1 else (declared,)
    return next((size for size in sizes if size in GROUP_SIZES and inputs % size == 0), None)


def offer() -> None:
    """Put the kernel before vLLM's own; may be repeated."""
    if not current_platform.is_cpu():
        return
    kernels = _POSSIBLE_KERNELS[PlatformEnum.CPU]
    if Int4PackLinearKernel not in kernels:
        kernels.insert(kernels.index(CPUWNA16LinearKernel), Int4PackLinearKernel)
