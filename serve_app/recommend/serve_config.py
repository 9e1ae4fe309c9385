"""What a Serve file says of the variants: memory by the planner, gates beside the checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.advise.evidence import Memory
from serve_app.config.calibration import calibrations
from serve_app.config.gpus import find_gpu, load_gpus
from serve_app.config.schema import VariantArgs
from serve_app.config.serve_file import check_serve_file
from serve_app.domain.errors import CheckpointError
from serve_app.domain.gpu import GpuProfile
from serve_app.domain.units import BP_TOTAL
from serve_app.domain.verdict import Verdict
from serve_app.fleet.plan import FleetVariant, plan_fleet
from serve_app.fleet.read import FleetFile, read_fleet
from serve_app.reference.locate import QUANTIZE_JSON, resolve
from serve_app.store.manifest import read_manifest
from serve_app.store.seal import read_gate


@dataclass(frozen=True)
class Served:
    """A Serve file as the recommendation sees it."""

    path: Path
    names: tuple[str, ...]
    """All variants, those of fake engines included."""
    file: FleetFile
    memory: Mapping[str, Memory]
    refused: Mapping[str, str]
    """Variants that run on none of the GPU types, and why."""
    gates: Mapping[str, Verdict]

    @property
    def models(self) -> set[str]:
        """Models that the planned variants are of: one, in a sound file."""
        return {each.args.model for each in self.file.variants}


def read_served(path: Path, gpu: str | None, *, assume: Path | None = None) -> Served:
    """Memory of each variant on `gpu`, or on the type that the file gives it; without either only
    the weights are known. Raises ConfigError or CheckpointError as the planner does.
    """
    catalogue = load_gpus()
    if gpu is not None:
        find_gpu(catalogue, gpu)
    file = read_fleet(path, assume=assume)
    memory, refused = {}, {}
    for variant in file.variants:
        found = _memory(variant, gpu, catalogue)
        if isinstance(found, str):
            refused[variant.args.name] = found
        else:
            memory[variant.args.name] = found
    gates = {v.args.name: verdict for v in file.variants if (verdict := gate_of(v.args))}
    names = tuple(args.name for args in check_serve_file(path))
    return Served(path, names, file, memory, refused, gates)


def _memory(
    variant: FleetVariant, gpu: str | None, catalogue: Mapping[str, GpuProfile]
) -> Memory | str:
    weight_bytes = variant.facts.weights.total_bytes
    if gpu is None and variant.args.gpu is None:
        return Memory(weight_bytes)
    fleet = plan_fleet(
        [variant], catalogue, {}, types=[gpu] if gpu else None, calibrations=calibrations()
    )
    plan = fleet.chosen(variant.args.name)
    if plan is None:
        return "; ".join(f"{name}: {why}" for name, why in fleet.variants[0].refused.items())
    ranks = plan.sizes.tensor_parallel_size
    return Memory(
        weight_bytes,
        plan.need_bytes,
        plan.gpu.name,
        plan.fraction_bp,
        ranks,
        BP_TOTAL // plan.fraction_bp if ranks == 1 else 0,
        fleet.packing.needed_gpus,
    )


def gate_of(args: VariantArgs) -> Verdict | None:
    """What the correctness gate left beside the checkpoint; None where it is not of our making, or
    not on this machine.

    A checkpoint of ours that was not judged with this engine and dtype is inconclusive, one that
    changed since an error. On which kind of machine, the replica asks.
    """
    try:
        folder = resolve(args.checkpoint)
        manifest, gate = read_manifest(folder), read_gate(folder)
    except CheckpointError:
        return None
    if gate is None:
        return Verdict.INCONCLUSIVE if (folder / QUANTIZE_JSON).is_file() else None
    found = [
        each.passed
        for each in gate.judgements
        if each.setting.engine == args.engine.kind
        and args.engine.dtype in ("auto", each.setting.dtype)
    ]
    if not any(found):
        return Verdict.FAIL if found else Verdict.INCONCLUSIVE
    is_same = manifest is not None and manifest.digest() == gate.manifest_sha256
    return Verdict.PASS if is_same else Verdict.ERROR
