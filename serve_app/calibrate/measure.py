"""From a variant of a config file to its entry in the calibration file."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from serve_app.calibrate.engine_run import EngineRun
from serve_app.config.calibration import CalibrationEntry
from serve_app.config.gpus import recognise_gpu
from serve_app.config.schema import VariantArgs
from serve_app.domain.errors import ConfigError, EngineError, InvalidRunError
from serve_app.domain.gpu import GpuProfile
from serve_app.domain.units import MIB, format_bytes
from serve_app.node.devices import DeviceMemory
from serve_app.planning.measured import EngineMemory, largest, measured_parts

IDLE_BYTES = 256 * MIB
"""What may be taken of a GPU that nobody uses: the driver's own, beyond what it says it keeps."""


class Gpu(DeviceMemory, Protocol):
    """A device that also says which card it is."""

    def profile(self) -> GpuProfile:
        """The card by the driver's word."""


def gpus_at_hand(count: int, find: Callable[[int], Sequence[Gpu]]) -> Sequence[Gpu]:
    """The GPUs to measure on, idle ones. Raises ConfigError that names what is missing."""
    try:
        gpus = find(count)
    except EngineError as error:
        raise ConfigError(
            f"calibration measures on a GPU, and there is none here ({error}): run it on a machine "
            "with an NVIDIA GPU and vLLM's GPU build (`make setup PROFILE=gpu`)"
        ) from None
    for gpu in gpus:
        if holders := gpu.holders():
            raise ConfigError(
                f"{gpu.key} is in use by {len(holders)} process(es), the largest with "
                f"{holders[0].describe()}: calibration needs the GPU alone"
            )
        used = gpu.profile().usable_bytes - gpu.free_bytes()
        if used > IDLE_BYTES:  # in a container NVML may not list whose it is
            raise ConfigError(
                f"{format_bytes(used)} of {gpu.key} are in use by processes that the driver does "
                "not name here: calibration needs the GPU alone"
            )
    return gpus


def type_of(gpus: Sequence[Gpu], catalogue: Mapping[str, GpuProfile]) -> str:
    """The catalogue's name of these GPUs. Raises ConfigError for a card that is not listed."""
    card = gpus[0].profile()
    known = recognise_gpu(catalogue, card.name, card.total_bytes)
    if known is None:
        raise ConfigError(
            f"{card.name} with {format_bytes(card.total_bytes)} is not in the catalogue: add it to "
            f"configs/gpus.yaml (the driver keeps {card.reserved_bytes >> 20} MiB of it); known: "
            f"{', '.join(catalogue)}"
        )
    return known.name


def entry_of(
    args: VariantArgs, scheme: str, gpu: str, run: EngineRun, date: datetime.date, command: str
) -> CalibrationEntry:
    """The entry of a measured run. Raises InvalidRunError where its numbers do not add up."""
    parts = largest([measured_parts(memory_of(rank, run.held_bytes)) for rank in run.ranks])
    return CalibrationEntry.model_validate(
        {
            "checkpoint": args.checkpoint,
            "scheme": scheme,
            "gpu": gpu,
            "vllm": run.vllm.partition("+")[0],
            "sizes": asdict(run.sizes),
            **asdict(parts),
            "date": date,
            "command": command,
        }
    )


def memory_of(rank: Mapping[str, Any], held_bytes: Mapping[str, int]) -> EngineMemory:
    """A rank's own report and what its process held by the driver's word.

    Raises InvalidRunError unless the rank ran on a GPU that was watched.
    """
    if rank["device"] != "cuda":
        raise InvalidRunError(
            f"the engine ran on {rank['device']}: this is vLLM's CPU build, whose memory says "
            "nothing about a GPU; install its GPU build (`make setup PROFILE=gpu`)"
        )
    held = held_bytes.get(rank["uuid"])
    if held is None:
        raise InvalidRunError(
            f"a rank ran on {rank['uuid']}, and {', '.join(held_bytes)} was watched: set "
            "CUDA_VISIBLE_DEVICES to the GPUs to measure on"
        )
    return EngineMemory(
        weights_bytes=rank["weights_bytes"],
        kv_cache_bytes=rank["kv_cache_bytes"],
        torch_bytes=rank["torch_bytes"],
        graph_pool_bytes=rank["graph_pool_bytes"],
        process_bytes=held,
    )
