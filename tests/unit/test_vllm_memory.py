"""The worker's report on a GPU, with a torch and a worker that stand in for the real ones."""

import sys
from types import SimpleNamespace

import pytest

from serve_app.calibrate.measure import memory_of
from serve_app.domain.units import GIB, MIB
from serve_app.engines.vllm_memory import MemoryReport
from serve_app.planning.measured import measured_parts

UUID = "6f1c9f5e-0000-0000-0000-000000000001"


class Tensor:
    """A view of a storage."""

    def __init__(self, address: int, n_bytes: int) -> None:
        self._storage = SimpleNamespace(data_ptr=lambda: address, nbytes=lambda: n_bytes)

    def untyped_storage(self):
        return self._storage


class Worker(MemoryReport):
    def __init__(self, kind: str) -> None:
        self.device = SimpleNamespace(type=kind, index=0)
        tied = Tensor(1, 10 * MIB)
        model = SimpleNamespace(
            parameters=lambda: [tied, tied, Tensor(2, 5 * MIB)], buffers=lambda: [Tensor(3, MIB)]
        )
        self.model_runner = SimpleNamespace(
            get_model=lambda: model,
            kv_caches=[Tensor(9, 2 * GIB), [Tensor(9, 2 * GIB), Tensor(10, GIB)]],
            model_memory_usage=float(5 * GIB),
        )


@pytest.fixture
def torch(monkeypatch):
    def segment(device, pool, n_bytes):
        return {"device": device, "segment_pool_id": pool, "total_size": n_bytes}

    segments = [
        segment(0, (0, 0), 8 * GIB),
        segment(0, (0, 1), 100 * MIB),
        segment(0, [1, 0], 50 * MIB),
        segment(1, (0, 1), GIB),
    ]
    cuda = SimpleNamespace(
        mem_get_info=lambda device: (10 * GIB, 22 * GIB),
        memory_reserved=lambda device: 9 * GIB,
        memory_snapshot=lambda: segments,
        get_device_properties=lambda device: SimpleNamespace(uuid=UUID),
    )
    module = SimpleNamespace(cuda=cuda)
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


@pytest.mark.usefixtures("torch")
def test_a_gpu_worker_reports_what_the_calibration_needs():
    report = Worker("cuda").quantile_memory(full_batch=False)
    assert report["weights_bytes"] == 5 * GIB
    assert report["kv_cache_bytes"] == 3 * GIB
    assert report["graph_pool_bytes"] == 150 * MIB
    assert report["uuid"] == f"GPU-{UUID}"
    parts = measured_parts(memory_of(report, {f"GPU-{UUID}": 9 * GIB + 400 * MIB}))
    assert parts.activation_bytes == GIB - 150 * MIB
    assert parts.context_bytes == 400 * MIB


@pytest.mark.usefixtures("torch")
def test_a_cpu_worker_reports_its_tensors_once():
    report = Worker("cpu").quantile_memory(full_batch=False)
    assert report["weights_bytes"] == 16 * MIB
    assert report["kv_cache_bytes"] == 3 * GIB
    assert "torch_bytes" not in report
