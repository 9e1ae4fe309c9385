"""The GPU catalogue, `configs/gpus.yaml`, checked strictly."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from serve_app.config.parse import parse, read_yaml
from serve_app.config.strict import StrictModel
from serve_app.domain.errors import ConfigError
from serve_app.domain.gpu import GpuProfile
from serve_app.domain.units import MIB

CATALOGUE = Path(__file__).parents[2] / "configs" / "gpus.yaml"

SAME_CARD = 0.02
"""By how much NVML's total may differ between drivers for a card to be the catalogue's."""


class Sources(StrictModel):
    """Where each figure of an entry comes from."""

    total_mib: Annotated[str, Field(min_length=1)]
    reserved_mib: Annotated[str, Field(min_length=1)]
    compute_capability: Annotated[str, Field(min_length=1)]
    bandwidth_gb_per_s: Annotated[str, Field(min_length=1)]
    price_usd_per_hour: Annotated[str, Field(min_length=1)]


class GpuEntry(StrictModel):
    """One GPU type, in the units of `nvidia-smi`."""

    accelerator_type: Annotated[str, Field(min_length=1)]
    total_mib: PositiveInt
    reserved_mib: NonNegativeInt
    compute_capability: Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")]
    bandwidth_gb_per_s: PositiveFloat
    price_usd_per_hour: PositiveFloat | None
    source: Sources

    def profile(self, name: str) -> GpuProfile:
        """The entry as the planner takes it."""
        major, minor = self.compute_capability.split(".")
        return GpuProfile(
            name=name,
            accelerator_type=self.accelerator_type,
            total_bytes=self.total_mib * MIB,
            reserved_bytes=self.reserved_mib * MIB,
            compute_capability=(int(major), int(minor)),
            bandwidth_gb_per_s=self.bandwidth_gb_per_s,
            price_usd_per_hour=self.price_usd_per_hour,
        )


def load_gpus(path: Path | None = None) -> dict[str, GpuProfile]:
    """The GPU types by name, in the file's order; `None` is the catalogue of this repository.

    Raises ConfigError for a file that is missing, no YAML, or has unknown or missing fields, and
    for a driver's share that leaves nothing.
    """
    file = path or CATALOGUE
    content = read_yaml(file, "the GPU catalogue ")
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{file} is no GPU catalogue: it needs a mapping from names to GPU types")
    return {str(name): _profile(str(name), entry, file) for name, entry in content.items()}


def _profile(name: str, values: Any, file: Path) -> GpuProfile:
    where = f"{file}: {name}"
    if not isinstance(values, dict):
        raise ConfigError(f"{where} holds {values!r}: it needs a mapping of the GPU's figures")
    entry = parse(GpuEntry, values, where=where)
    if entry.reserved_mib >= entry.total_mib:
        raise ConfigError(
            f"{where}: reserved_mib {entry.reserved_mib} leaves nothing of total_mib "
            f"{entry.total_mib}: it is what CUDA does not hand out"
        )
    return entry.profile(name)


def find_gpu(gpus: Mapping[str, GpuProfile], name: str) -> GpuProfile:
    """The GPU type of that name. Raises ConfigError that names those that are known."""
    if name not in gpus:
        raise ConfigError(
            f"{name!r} is no GPU type of the catalogue; known: {', '.join(gpus)} "
            "(add it to configs/gpus.yaml)"
        )
    return gpus[name]


def recognise_gpu(
    gpus: Mapping[str, GpuProfile], device_name: str, total_bytes: int
) -> GpuProfile | None:
    """The type of a card, by the name and the total that NVML gives; None for one not listed."""
    words = re.split(r"[\s-]+", device_name)
    same = [
        gpu
        for gpu in gpus.values()
        if gpu.accelerator_type in words
        and abs(gpu.total_bytes - total_bytes) <= SAME_CARD * gpu.total_bytes
    ]
    return min(same, key=lambda gpu: abs(gpu.total_bytes - total_bytes), default=None)
