"""SqueezeLLM's linear layers in vLLM, in plain torch: on CPU and CUDA alike.

Codes and tables have a row per output channel, so vLLM's own loaders fuse q, k, v and gate, up and
divide them over tensor-parallel ranks. The sparse part is loaded whole on every rank: which rows
are ours, the layer's own loader tells, which is given row numbers in place of weights.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.linear import LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.utils import set_weight_attrs

from serve_app.domain.errors import CheckpointError, ConfigError
from serve_app.engines.vllm_squeezellm_weights import (
    CODES,
    OUTLIER_TENSORS,
    Outliers,
    column_dtype,
    count_dtype,
    look_up,
    stack,
)
from serve_app.planning.weights import LOOKUP_BLOCK_WEIGHTS

CPU_BLOCK_WEIGHTS = 2**18
"""Dense weights that exist at a time on CPU, so that they stay in the cache: a 4096x4096 layer at
batch 1 took 13 to 16 ms so and 100 ms at once. On CUDA memory is the bound (`planning.weights`)."""

SETTING = "dequantize_once"
_ROW_BITS = 32  # a row's number is its part's number above its place in the part


class SqueezeLLMLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """One layer's weights; `kernel` says how they are used, once loaded."""

    def __init__(self, bits: int, outliers: bool) -> None:
        self.bits = bits
        self.has_outliers = outliers
        self.kernel: LookUpEachTime | DequantizedOnce | None = None
        self._parts: dict[Any, dict[str, Tensor]] = {}  # while loading: outliers by fused part
        self._once = _wants_dequantize_once()

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Make room for what the checkpoint has. Raises `ConfigError` for a rank's uneven share."""
        columns, rows = input_size_per_partition, sum(output_partition_sizes)
        if columns % CODES:
            raise ConfigError(
                f"SqueezeLLM weights of {input_size} input channels leave {columns} to each rank: "
                f"need a multiple of {CODES}; lower tensor_parallel_size"
            )
        self.params_dtype = params_dtype
        loader = extra_weight_attrs["weight_loader"]
        shapes = {
            "qweight": ((rows, columns * self.bits // 8), torch.uint8, {"input_dim": 1}),
            "lookup_table": ((rows, 2**self.bits), torch.float16, {}),
        }
        for name, (shape, dtype, more) in shapes.items():
            # NaN shows, after loading, which rows of the table nothing was loaded into.
            empty = torch.full(shape, torch.nan if dtype.is_floating_point else 0, dtype=dtype)
            attributes = {"output_dim": 0, "weight_loader": loader, **more}
            self._register(layer, name, empty, attributes)
        if self.has_outliers:
            self._row_source = torch.nn.Parameter(
                torch.full((rows,), -1, dtype=torch.int64, device="cpu"), requires_grad=False
            )
            set_weight_attrs(self._row_source, {"output_dim": 0})
            kinds = {
                "outlier_counts": (count_dtype(input_size), self._counts_loader(loader)),
                "outlier_columns": (column_dtype(input_size), self._loader("outlier_columns")),
                "outlier_values": (torch.float16, self._loader("outlier_values")),
            }
            for name, (dtype, load) in kinds.items():
                self._register(layer, name, torch.empty(0, dtype=dtype), {"weight_loader": load})

    @staticmethod
    def _register(
        layer: torch.nn.Module, name: str, data: Tensor, attributes: dict[str, Any]
    ) -> None:
        parameter = torch.nn.Parameter(data, requires_grad=False)
        set_weight_attrs(parameter, attributes)
        layer.register_parameter(name, parameter)

    def _loader(self, name: str) -> Callable[..., None]:
        def load(parameter: Tensor, loaded: Tensor, shard_id: Any = None) -> None:
            self._parts.setdefault(shard_id, {})[name] = loaded.clone()

        return load

    def _counts_loader(self, layers_own: Callable[..., None]) -> Callable[..., None]:
        """Keeps the counts of all rows, and learns which of them are this rank's."""
        keep = self._loader("outlier_counts")

        def load(parameter: Tensor, loaded: Tensor, shard_id: Any = None) -> None:
            keep(parameter, loaded, shard_id)
            number = list(self._parts).index(shard_id)
            rows = torch.arange(loaded.numel()) + (number << _ROW_BITS)
            layers_own(self._row_source, rows, *(() if shard_id is None else (shard_id,)))

        return load

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Bring the sparse part into place. Raises `CheckpointError` if the checkpoint had less."""
        prefix = getattr(layer, "prefix", "a layer")
        if bool(layer.lookup_table.isnan().any()):
            raise CheckpointError(
                f"the checkpoint lacks lookup_table of {prefix}, or some of it is not a number"
            )
        n_columns = layer.qweight.shape[1] * 8 // self.bits
        index, values = None, None
        if self.has_outliers:
            index, values = self._local_outliers(layer, prefix, n_columns)
            for name in OUTLIER_TENSORS:
                delattr(layer, name)
        table = layer.lookup_table.data.to(self.params_dtype)
        codes = layer.qweight.data
        del layer.qweight, layer.lookup_table
        each_time = LookUpEachTime(layer, self.bits, codes, table, index, values)
        self.kernel = DequantizedOnce(layer, each_time) if self._once else each_time
        self._parts = {}

    def _local_outliers(
        self, layer: torch.nn.Module, prefix: str, n_columns: int
    ) -> tuple[Tensor, Tensor]:
        """Places (flattened, int32, ascending) and values of this rank's outliers."""
        source = self._row_source.data
        if bool((source < 0).any()):
            raise CheckpointError(f"the checkpoint lacks outlier_counts of {prefix}")
        parts = []
        for shard_id, part in self._parts.items():
            missing = [name for name in OUTLIER_TENSORS if name not in part]
            if missing:
                where = prefix if shard_id is None else f"{prefix} ({shard_id})"
                raise CheckpointError(f"the checkpoint lacks {', '.join(missing)} of {where}")
            counts, columns, values = (part[name] for name in OUTLIER_TENSORS)
            parts.append(Outliers(counts, columns, values, layer.input_size))
        first_rows = torch.tensor([0, *(part.counts.numel() for part in parts)]).cumsum(0)
        ours = first_rows[source >> _ROW_BITS] + (source & (2**_ROW_BITS - 1))
        local = stack(parts).take_rows(ours)
        if n_columns != layer.input_size:  # a row-parallel layer divides the input channels too
            local = local.take_columns(layer.tp_rank * n_columns, n_columns)
        places, order = local.places.sort()
        device = layer.qweight.device
        return (
            places.to(device, torch.int32),
            local.values[order].to(device, self.params_dtype),
        )

    def apply(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x @ W.T + bias`."""
        assert self.kernel is not None
        return self.kernel.apply(layer, x, bias)

    def dequantize_weight(self, layer: torch.nn.Module) -> Tensor:
        """The layer's dense weights, as vLLM asks for them to quantize them otherwise."""
        if not isinstance(self.kernel, LookUpEachTime):
            raise ConfigError(f"SqueezeLLM weights are dense already: leave out {SETTING}")
        return self.kernel.dense(layer)


class LookUpEachTime:
    """Looks the weights up in each call, some rows at a time; keeps them packed."""

    def __init__(
        self,
        layer: torch.nn.Module,
        bits: int,
        codes: Tensor,
        table: Tensor,
        index: Tensor | None,
        values: Tensor | None,
    ) -> None:
        self.bits = bits
        self.n_rows, self.n_columns = codes.shape[0], codes.shape[1] * 8 // bits
        size = CPU_BLOCK_WEIGHTS if codes.device.type == "cpu" else LOOKUP_BLOCK_WEIGHTS
        step = max(1, size // self.n_columns)
        self.blocks = [
            (start, min(start + step, self.n_rows)) for start in range(0, self.n_rows, step)
        ]
        tensors = {"codes": codes, "table": table}
        self.cuts = [(0, 0)] * len(self.blocks)
        if index is not None and values is not None:
            ends = torch.tensor([end * self.n_columns for _, end in self.blocks])
            cuts = [0, *torch.searchsorted(index.cpu().long(), ends).tolist()]
            self.cuts = list(pairwise(cuts))
            tensors |= {"outlier_index": index, "outlier_values": values}
        for name, tensor in tensors.items():
            layer.register_parameter(
                f"squeezellm_{name}", torch.nn.Parameter(tensor, requires_grad=False)
            )

    def apply(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        """Block after block of output channels."""
        parts = [
            torch.nn.functional.linear(
                x, self._block(layer, number), None if bias is None else bias[start:end]
            )
            for number, (start, end) in enumerate(self.blocks)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def dense(self, layer: torch.nn.Module) -> Tensor:
        """All rows, `[N, K]`."""
        return torch.cat([self._block(layer, number) for number in range(len(self.blocks))])

    def release(self, layer: torch.nn.Module) -> None:
        """Drop the packed weights."""
        for name in ("codes", "table", "outlier_index", "outlier_values"):
            if hasattr(layer, f"squeezellm_{name}"):
                delattr(layer, f"squeezellm_{name}")

    def _block(self, layer: torch.nn.Module, number: int) -> Tensor:
        start, end = self.blocks[number]
        weight = look_up(
            layer.squeezellm_codes[start:end], layer.squeezellm_table[start:end], self.bits
        )
        first, last = self.cuts[number]
        if last > first:
            at = layer.squeezellm_outlier_index[first:last].long() - start * self.n_columns
            weight.view(-1)[at] = layer.squeezellm_outlier_values[first:last]
        return weight


class DequantizedOnce:
    """Dense weights, and vLLM's own method for them."""

    def __init__(self, layer: torch.nn.Module, packed: LookUpEachTime) -> None:
        weight = torch.nn.Parameter(packed.dense(layer), requires_grad=False)
        packed.release(layer)
        layer.register_parameter("weight", weight)
        self.method = UnquantizedLinearMethod()
        self.method.process_weights_after_loading(layer)

    def apply(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        """As any layer that never was quantized."""
        product: Tensor = self.method.apply(layer, x, bias)
        return product


def _wants_dequantize_once() -> bool:
    """`additional_config: {squeezellm: {dequantize_once: true}}`. Raises `ConfigError`."""
    config = get_current_vllm_config_or_none()
    additional = getattr(config, "additional_config", None)
    settings = additional.get("squeezellm", {}) if isinstance(additional, dict) else {}
    if not isinstance(settings, dict) or settings.keys() - {SETTING}:
        raise ConfigError(
            f"additional_config.squeezellm is {settings!r}: need {{{SETTING}: true}} or nothing"
        )
    wanted = settings.get(SETTING, False)
    if not isinstance(wanted, bool):
        raise ConfigError(f"{SETTING} is true or false, have {wanted!r}")
    return wanted
