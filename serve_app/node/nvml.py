"""GPU memory through NVML, the only importer of its bindings."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import psutil

from serve_app.domain.errors import ConfigError, EngineError
from serve_app.domain.gpu import GpuProfile
from serve_app.node.devices import Holding

VISIBLE = "CUDA_VISIBLE_DEVICES"


class NvmlDevice:
    """One GPU, or one MIG slice of one."""

    def __init__(self, handle: Any, pid_exists: Callable[[int], bool] = psutil.pid_exists) -> None:
        self._handle = handle
        self._pid_exists = pid_exists
        with _nvml() as nvml:
            self.key = str(nvml.nvmlDeviceGetUUID(handle))

    def total_bytes(self) -> int:
        """All of it, the driver's part included."""
        with _nvml() as nvml:
            return int(nvml.nvmlDeviceGetMemoryInfo(self._handle).total)

    def free_bytes(self) -> int:
        """What no process and no driver holds."""
        with _nvml() as nvml:
            return int(nvml.nvmlDeviceGetMemoryInfo(self._handle).free)

    def used_by(self, pids: list[int]) -> int | None:
        """Bytes of these processes; None where NVML does not tell, which is not the same as 0.

        In a container with PIDs of its own NVML lists the host's PIDs, or nothing. So the answer
        counts only if one of `pids` is listed, and every PID that is listed exists here.
        """
        listed = self._listed()
        if not all(self._pid_exists(holding.pid) for holding in listed):
            return None
        mine = [holding.bytes for holding in listed if holding.pid in pids]
        return sum(n for n in mine if n is not None) if mine and None not in mine else None

    def holders(self) -> list[Holding]:
        """As NVML lists them: the PIDs may be the host's."""
        return sorted(self._listed(), key=lambda holding: -(holding.bytes or 0))

    def profile(self) -> GpuProfile:
        """The card as NVML describes it, for one that is not in the catalogue."""
        with _nvml() as nvml:
            name = str(nvml.nvmlDeviceGetName(self._handle))
            memory = nvml.nvmlDeviceGetMemoryInfo(self._handle, nvml.nvmlMemory_v2)
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(self._handle)
        return GpuProfile(
            name=name,
            accelerator_type=name,
            total_bytes=int(memory.total),
            reserved_bytes=int(memory.reserved),
            compute_capability=(int(major), int(minor)),
            bandwidth_gb_per_s=math.nan,  # NVML does not say
        )

    def _listed(self) -> list[Holding]:
        with _nvml() as nvml:
            found = nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return [Holding(int(entry.pid), entry.usedGpuMemory) for entry in found]


def assigned_gpus(count: int, environ: Mapping[str, str] = os.environ) -> list[NvmlDevice]:
    """The first `count` GPUs that CUDA shows this process, in CUDA's order.

    Ray writes its assignment into CUDA_VISIBLE_DEVICES: indices in NVML's order (as vLLM takes them
    too), UUIDs or beginnings of UUIDs, or MIG ids. Raises ConfigError if there are fewer than
    `count`, EngineError if NVML cannot be asked.
    """
    with _nvml() as nvml:
        names = environ.get(VISIBLE)
        if names is None:
            wanted = [str(index) for index in range(nvml.nvmlDeviceGetCount())]
        else:
            wanted = [name.strip() for name in names.split(",") if name.strip()]
        if len(wanted) < count:
            raise ConfigError(
                f"the engine needs {count} GPU(s) and {VISIBLE}={names!r} gives this replica "
                f"{len(wanted)}: set args.gpu, or ray_actor_options.num_gpus"
            )
        handles = [_handle(nvml, name) for name in wanted[:count]]
    return [NvmlDevice(handle) for handle in handles]


def _handle(nvml: Any, name: str) -> Any:
    if name.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    if name.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(name)
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        if name.startswith("GPU-") and str(nvml.nvmlDeviceGetUUID(handle)).startswith(name):
            return handle
    raise ConfigError(f"{VISIBLE} names {name!r}, which is no GPU of this machine")


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVML's functions; its errors come out as EngineError."""
    import pynvml

    try:
        _initialise()
        yield pynvml
    except pynvml.NVMLError as error:
        raise EngineError(
            f"cannot ask the GPU through NVML: {error}; need NVIDIA's driver on this machine, and "
            "in a container the capability `utility` (NVIDIA_DRIVER_CAPABILITIES)"
        ) from None


@cache
def _initialise() -> None:
    import pynvml

    pynvml.nvmlInit()
