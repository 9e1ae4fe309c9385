"""What a vLLM worker holds in memory, asked of the worker itself.

Named to vLLM as `worker_extension_cls`, so it is mixed into its worker class and called with
`collective_rpc("quantile_memory")`.
"""

import os
from typing import Any


class MemoryReport:
    """Mixed into vLLM's worker; every name must be one that no worker has."""

    def quantile_memory(self, full_batch: bool = True) -> dict[str, int | str]:
        """What this rank holds, bytes. With `full_batch` after one more profile run.

        vLLM empties torch's cache before it captures graphs: without such a run what a full batch
        takes would be missing.
        """
        import torch

        worker: Any = self
        if full_batch:
            from vllm.config import set_current_vllm_config

            with torch.inference_mode(), set_current_vllm_config(worker.vllm_config):
                worker.model_runner.profile_run()
        runner = worker.model_runner
        report: dict[str, int | str] = {
            "pid": os.getpid(),
            "device": worker.device.type,
            "weights_bytes": tensors_bytes(
                [*runner.get_model().parameters(), *runner.get_model().buffers()]
            ),
            "kv_cache_bytes": tensors_bytes(runner.kv_caches),
        }
        if worker.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(worker.device)
            report |= {
                # As vLLM reports after load: what the allocator gave, tensors of no parameter too.
                "weights_bytes": int(runner.model_memory_usage),
                "torch_bytes": torch.cuda.memory_reserved(worker.device),
                "graph_pool_bytes": _graph_pool_bytes(torch.cuda.memory_snapshot(), worker.device),
                "free_bytes": free,
                "total_bytes": total,
                "uuid": f"GPU-{torch.cuda.get_device_properties(worker.device).uuid}",
            }
        return report


def tensors_bytes(tensors: Any) -> int:
    """Bytes of the storages, each once: views and tied weights share theirs."""
    storages = {}
    for tensor in _flat(tensors):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _flat(tensors: Any) -> Any:
    for item in tensors:
        if isinstance(item, list | tuple):
            yield from _flat(item)
        else:
            yield item


def _graph_pool_bytes(segments: list[dict[str, Any]], device: Any) -> int:
    """Bytes of the allocator's segments that belong to a graph's private pool."""
    return sum(
        segment["total_size"]
        for segment in segments
        if segment["device"] == device.index and tuple(segment["segment_pool_id"]) != (0, 0)
    )
