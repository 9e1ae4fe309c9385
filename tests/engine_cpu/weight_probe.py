"""A process of its own: what a real vLLM CPU engine holds of each checkpoint after loading.

`python -m tests.engine_cpu.weight_probe <out.json> float16=<folder> ...` writes a list of objects:
`tensor_bytes` (parameters and buffers, each storage once), `packed_bytes` (weights that oneDNN, or
a packed tensor, holds in place of a parameter), `copied_bytes` (those that it holds beside the
parameter) and `cpu_only_bytes` (what only the CPU kernels make).
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from serve_app.quantize.gate_process import ENGINE_ENV, KV_CACHE_BYTES


def held_bytes(model: Any) -> dict[str, int]:
    """Count a loaded model, as vLLM's `apply_model` calls it."""
    storages = {}
    cpu_only = 0
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr() or name] = storage.nbytes()
        cpu_only += storage.nbytes() if name.endswith(".azp_adj") else 0
    packed = copied = 0
    for module in model.modules():
        n_bytes = _packed_bytes(module)
        weight = getattr(module, "weight", None)
        cpu_only += _compensation_bytes(module)
        if weight is None or weight.numel() == 0:
            packed += n_bytes
        else:
            copied += n_bytes
    return {
        "tensor_bytes": sum(storages.values()),
        "packed_bytes": packed,
        "copied_bytes": copied,
        "cpu_only_bytes": cpu_only,
    }


def _compensation_bytes(module: Any) -> int:
    """With AMX an int8 layer's weight ends with an int32 per channel, in place of azp_adj."""
    weight = getattr(module, "weight", None)
    n_in = getattr(module, "input_size_per_partition", None)
    if weight is None or n_in is None or str(weight.dtype) != "torch.int8":
        return 0
    return int(weight.untyped_storage().nbytes() - n_in * module.output_size_per_partition)


def _packed_bytes(module: Any) -> int:
    """Bytes of one layer's weights outside its parameters."""
    handler = getattr(
        getattr(getattr(module, "scheme", None), "kernel", None), "dnnl_handler", None
    )
    if handler is not None:
        return handler.k * handler.n  # int8
    closure = getattr(getattr(module, "cpu_linear", None), "__closure__", None) or ()
    held = [cell.cell_contents for cell in closure]
    tensors = sum(item.untyped_storage().nbytes() for item in held if hasattr(item, "data_ptr"))
    handlers = [item for item in held if hasattr(item, "handler_tensor")]
    return tensors + sum(item.k * item.n * module.weight.element_size() for item in handlers)


def main() -> None:
    """Load each `dtype=folder` of the command line, one after the other."""
    os.environ.update(ENGINE_ENV)
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    from vllm import LLM

    out, *pairs = sys.argv[1:]
    found = []
    for pair in pairs:
        dtype, _, folder = pair.partition("=")
        llm = LLM(
            model=folder,
            dtype=dtype,
            max_model_len=512,
            max_num_seqs=16,
            kv_cache_memory_bytes=KV_CACHE_BYTES,
            enforce_eager=True,
            disable_log_stats=True,
        )
        found += llm.apply_model(held_bytes)
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
