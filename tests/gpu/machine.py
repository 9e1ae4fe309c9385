"""The device under test, the variants that are there, and their plans."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from serve_app.config.gpus import load_gpus, recognise_gpu
from serve_app.config.schema import EngineSettings
from serve_app.config.sizing import engine_sizes
from serve_app.domain.errors import CheckpointError
from serve_app.domain.gpu import GpuProfile
from serve_app.node.devices import DeviceMemory
from serve_app.node.host import HostMemory
from serve_app.node.nvml import assigned_gpus
from serve_app.planning.footprint import footprint, host_footprint
from serve_app.planning.plan import CacheWish, MemoryPlan, plan_memory
from serve_app.quantize.catalogue import recipe
from serve_app.reference.build import CHECKPOINT
from serve_app.reference.locate import resolve
from serve_app.store.facts import checkpoint_facts

DEVICE_VARIABLE = "QUANTILE_GPU_TESTS_DEVICE"
FAMILY = ("baseline", "int8", "gptq", "awq")
CONCURRENCY = 8.0


@dataclass(frozen=True)
class Machine:
    """One device to share: a GPU, or the machine's own memory."""

    kind: str
    device: DeviceMemory
    gpu: GpuProfile
    known: bool
    """Whether the card is in the catalogue."""

    @property
    def is_gpu(self) -> bool:
        return self.kind == "gpu"


@dataclass(frozen=True)
class Variant:
    """A checkpoint that is there, with the plan of its engine."""

    name: str
    folder: Path
    settings: EngineSettings
    plan: MemoryPlan


def find_machine(kind: str) -> Machine:
    """The device that `QUANTILE_GPU_TESTS_DEVICE` names."""
    if kind == "host":
        host = HostMemory()
        profile = GpuProfile("host", "host", host.total_bytes(), 0, (0, 0), math.nan)
        return Machine(kind, host, profile, known=False)
    assert kind == "gpu", f"{DEVICE_VARIABLE} is gpu or host, have {kind!r}"
    (card,) = assigned_gpus(1)
    assert not card.holders(), f"{card.key} is in use: the tests need it alone"
    profile = card.profile()
    known = recognise_gpu(load_gpus(), profile.name, profile.total_bytes)
    return Machine(kind, card, known or profile, known=known is not None)


def family(machine: Machine, eager: bool) -> list[Variant]:
    """The reference variants on this machine; bf16 at least, whose checkpoint is committed.

    The quantized ones are made by `quantile reference build`, in another environment; carry
    `$QUANTILE_HOME` to a machine that has none.
    """
    found = []
    for name in FAMILY:
        try:
            folder = resolve(f"reference://{name}")
        except CheckpointError:
            if name != "baseline":
                continue
            folder = CHECKPOINT
        found.append(_variant(name, folder, machine, eager))
    return found


def replicas(variants: list[Variant], count: int) -> list[Variant]:
    """So many engines, going round the variants, each with a name of its own."""
    return [
        dataclasses.replace(each, name=f"{each.name}-{i}")
        for i, each in ((i, variants[i % len(variants)]) for i in range(count))
    ]


def _variant(name: str, folder: Path, machine: Machine, eager: bool) -> Variant:
    eager = eager or not machine.is_gpu
    asked = EngineSettings(
        dtype=recipe(name).engine.dtype,
        max_model_len=512,
        max_num_seqs=16,
        max_num_batched_tokens=1024,
        max_cudagraph_capture_size=None if eager else 16,
        enforce_eager=eager,
        threads=None if machine.is_gpu else 1,
    )
    facts = checkpoint_facts(str(folder))
    sizes = engine_sizes(asked, facts)
    parts = footprint(facts, sizes, machine.gpu) if machine.is_gpu else host_footprint(facts, sizes)
    plan = plan_memory(name, machine.gpu, sizes, parts, CacheWish(concurrency=CONCURRENCY))
    planned = plan.engine_settings()
    if eager:
        del planned["max_cudagraph_capture_size"]
    settings = EngineSettings.model_validate(asked.model_dump() | planned)
    return Variant(name, folder, settings, plan)
