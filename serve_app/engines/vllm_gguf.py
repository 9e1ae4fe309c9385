"""What vLLM's GGUF plugin lacks: the order of q and k, and kernels for CPUs.

`vllm-gguf-plugin` 0.0.5 hands llama.cpp's rows to vLLM's Llama as they are, whose rotary embedding
needs Hugging Face's order, so that the model talks nonsense; and its kernels are for GPUs. Both are
mended here, in every vLLM process, where that plugin is installed; only GGUF checkpoints pass
through what is changed. On a CPU each product unpacks its weights anew: right, and slow.
"""

import importlib
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import torch

from serve_app.engines.gguf_order import PERMUTED_ARCHITECTURES, hugging_face_rows
from serve_app.store.gguf_header import read_gguf_header
from serve_app.store.source import LocalSource

PLUGIN = "vllm_gguf_plugin"
_PATCHED = "_quantile_patched"


def mend() -> bool:
    """Change the plugin's adapter and operators, once per process. False: it is not installed."""
    if find_spec(PLUGIN) is None:
        return False
    adapter = importlib.import_module(f"{PLUGIN}.weights_adapter.default").GGUFWeightsAdapter
    operators = importlib.import_module(f"{PLUGIN}.ops")
    if not getattr(operators, _PATCHED, False):
        adapter.prepare_loading = _noting_order(adapter.prepare_loading)
        adapter.transform_weight = _ordering(adapter.transform_weight)
        for name, substitute in _ON_CPU.items():
            setattr(operators, name, _or_on_cpu(getattr(operators, name), substitute))
        setattr(operators, _PATCHED, True)
    return True


def _noting_order(prepare_loading: Callable[..., Any]) -> Callable[..., Any]:
    """Keep how many heads the rows of q and k are ordered by, if they are."""

    @wraps(prepare_loading)
    def noting(self: Any, model_path: str, model_config: Any) -> Any:
        spec = prepare_loading(self, model_path, model_config)
        file = Path(model_path)
        header = read_gguf_header(LocalSource(file.parent), file.name)
        self.quantile_heads = {}
        if header.metadata.get("general.architecture") in PERMUTED_ARCHITECTURES:
            config = model_config.hf_config
            n_heads = int(config.num_attention_heads)
            n_kv_heads = int(getattr(config, "num_key_value_heads", None) or n_heads)
            self.quantile_heads = {"q_proj": n_heads, "k_proj": n_kv_heads}
        return spec

    return noting


def _ordering(transform_weight: Callable[..., Any]) -> Callable[..., Any]:
    """Put the rows of q and k into Hugging Face's order, packed or not."""

    @wraps(transform_weight)
    def ordering(self: Any, hf_name: str, weight: torch.Tensor) -> torch.Tensor:
        weight = transform_weight(self, hf_name, weight)
        projection, _, kind = hf_name.rpartition(".")
        heads = getattr(self, "quantile_heads", {}).get(projection.rpartition(".")[2])
        if heads is None or kind not in ("weight", "qweight", "bias"):
            return weight
        return weight[torch.from_numpy(hugging_face_rows(len(weight), heads))]

    return ordering


def _dequantize(
    packed: torch.Tensor, kind: int, m: int, n: int, dtype: torch.dtype | None
) -> torch.Tensor:
    """Packed rows as numbers. `m` and `n`, which the plugin swaps for embeddings, follow anyway."""
    values = gguf.quants.dequantize(packed.numpy(), gguf.GGMLQuantizationType(kind))
    return torch.from_numpy(values).to(dtype or torch.float16)


def _multiply(packed: torch.Tensor, x: torch.Tensor, kind: int, row: int) -> torch.Tensor:
    return x @ _dequantize(packed, kind, row, x.shape[-1], x.dtype).T


_ON_CPU: dict[str, Callable[..., torch.Tensor]] = {
    "ggml_dequantize": _dequantize,
    "ggml_mul_mat_vec_a8": _multiply,
    "ggml_mul_mat_a8": _multiply,
}


def _or_on_cpu(
    original: Callable[..., torch.Tensor], substitute: Callable[..., torch.Tensor]
) -> Callable[..., torch.Tensor]:
    @wraps(original)
    def operator(packed: torch.Tensor, *arguments: Any) -> torch.Tensor:
        return (substitute if packed.device.type == "cpu" else original)(packed, *arguments)

    return operator
